{{/*
A peer: pods of a component of this release. Takes root and component; optionally namespace, that of the
pods, and at, that of the policy: both are the release's by default.
*/}}
{{- define "prefect-hamilton.network.peer" -}}
{{- $namespace := .namespace | default .root.Release.Namespace -}}
{{- $isForeign := ne $namespace (.at | default .root.Release.Namespace) -}}
- podSelector:
    matchLabels:
      {{- if ne .component "flow-run" }}
      app.kubernetes.io/name: {{ include "prefect-hamilton.name" .root | toYaml }}
      {{- end }}
      app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
      app.kubernetes.io/component: {{ .component }}
  {{- if $isForeign }}
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ $namespace | toYaml }}
  {{- end }}
{{- end }}

{{/* Flow pods as peers, one for each namespace. */}}
{{- define "prefect-hamilton.network.flows" -}}
{{- $peers := list }}
{{- range $namespace, $_ := include "prefect-hamilton.flows.poolsByNamespace" . | fromYaml }}
{{- $peers = append $peers (include "prefect-hamilton.network.flowsOf" (dict "root" $ "namespace" $namespace)) }}
{{- end }}
{{- join "\n" $peers }}
{{- end }}

{{/* The flow pods that load into the bundled PostgreSQL, as peers. */}}
{{- define "prefect-hamilton.network.warehouseClients" -}}
{{- $peers := list }}
{{- range $namespace, $pools := include "prefect-hamilton.flows.poolsByNamespace" . | fromYaml }}
{{- $of := dict "root" $ "namespace" $namespace "pools" $pools }}
{{- if include "prefect-hamilton.flows.namespaceLoadsBundledWarehouse" $of }}
{{- $peers = append $peers (include "prefect-hamilton.network.flowsOf" $of) }}
{{- end }}
{{- end }}
{{- join "\n" $peers }}
{{- end }}

{{/* Flow pods in a namespace as a peer: Prefect sets their label app.kubernetes.io/name. */}}
{{- define "prefect-hamilton.network.flowsOf" -}}
{{- include "prefect-hamilton.network.peer" (dict "root" .root "component" "flow-run" "namespace" .namespace) }}
{{- end }}

{{- define "prefect-hamilton.network.dns" -}}
# DNS.
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "prefect-hamilton.network.kubernetes" -}}
# The Kubernetes API, whose address differs per cluster; these are its usual ports.
- ports:
    - {port: 443, protocol: TCP}
    - {port: 6443, protocol: TCP}
{{- end }}

{{/*
The Prefect API: the release's server, or the port of an external one at any address. Takes root; optionally at,
the namespace of the policy.
*/}}
{{- define "prefect-hamilton.network.api" -}}
{{- if .root.Values.server.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict
      "root" .root
      "component" "server"
      "at" .at) | nindent 4 }}
  ports:
    - {port: 4200, protocol: TCP}
{{- else -}}
# The Prefect API, at {{ .root.Values.api.url }}.
- ports:
    - {port: {{ include "prefect-hamilton.network.urlPort" .root.Values.api.url }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* The port of a URL: the one that it names, or its scheme's. */}}
{{- define "prefect-hamilton.network.urlPort" -}}
{{- /* An address such as git@host:path is none; validation refuses it with a sentence. */}}
{{- $url := contains "://" . | ternary . "" | urlParse }}
{{- $ports := dict "https" "443" "ssh" "22" "git" "9418" }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (get $ports $url.scheme | default "80") }}
{{- end }}

{{/* PostgreSQL: the bundled one, or the port of an external one at any address. Takes root; optionally at. */}}
{{- define "prefect-hamilton.network.postgres" -}}
{{- if .root.Values.postgres.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" .root "component" "postgres" "at" .at) | nindent 4 }}
  ports:
    - {port: 5432, protocol: TCP}
{{- else if .root.Values.postgres.host -}}
# PostgreSQL, at {{ .root.Values.postgres.host }}.
- ports:
    - {port: {{ .root.Values.postgres.port }}, protocol: TCP}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.network.valkey" -}}
{{- if .Values.valkey.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" . "component" "valkey") | nindent 4 }}
  ports:
    - {port: 6379, protocol: TCP}
{{- else if .Values.valkey.existingSecret -}}
# An external Valkey or Redis.
- ports:
    - {port: {{ .Values.valkey.port }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* The Hamilton UI. Takes root; optionally at. */}}
{{- define "prefect-hamilton.network.hamilton-ui" -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" .root "component" "hamilton-ui" "at" .at) | nindent 4 }}
  ports:
    - {port: 8241, protocol: TCP}
{{- end }}

{{/*
The Git server of the flows: the bundled one, or the port of an external one at any address. Takes root;
optionally at.
*/}}
{{- define "prefect-hamilton.network.git" -}}
{{- if .root.Values.gitServer.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict
      "root" .root
      "component" "git-server"
      "at" .at) | nindent 4 }}
  ports:
    - {port: 9418, protocol: TCP}
{{- else if include "prefect-hamilton.flows.isRegistered" .root -}}
{{- $urls := .root.Values.flows.repository | list }}
{{- range .root.Values.flows.repositories }}
{{- $urls = append $urls .url }}
{{- end }}
{{- $ports := list }}
{{- range compact $urls }}
{{- $ports = append $ports (contains "://" . | ternary (include "prefect-hamilton.network.urlPort" .) "22") }}
{{- end -}}
# The Git server of {{ .root.Values.flows.repositories | empty | ternary "flows.repository" "flows.repositories" }}.
- ports:
    {{- range $ports | uniq | sortAlpha }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}

{{/*
Where notifications and webhooks of automations go. Takes root and component; the pods of one
component send them.
*/}}
{{- define "prefect-hamilton.network.notifications" -}}
{{- $values := .root.Values -}}
{{- $isSeparate := eq "true" (include "prefect-hamilton.background-services.isSeparate" .root) -}}
{{- $sender := ternary "background-services" "server" $isSeparate -}}
{{- if eq .component $sender -}}
{{- if not (kindIs "invalid" $values.networkPolicy.notificationsEgress) -}}
{{- with $values.networkPolicy.notificationsEgress -}}
# networkPolicy.notificationsEgress
{{ toYaml . }}
{{- end }}
{{- else if $values.bootstrap.enabled -}}
{{- $types := list -}}
{{- range $values.bootstrap.state.blocks -}}
{{- if regexMatch "webhook$|^twilio-sms$|^sendgrid-email$" (toString .type) -}}
{{- $types = append $types .type -}}
{{- end -}}
{{- end -}}
{{- with $types | uniq -}}
# For the blocks of bootstrap.state ({{ join ", " . }}); restrict it with networkPolicy.notificationsEgress.
- ports:
    - {port: 443, protocol: TCP}
{{- end }}
{{- range $name, $channel := $values.alerts.channels }}
# The channel {{ $name }} of alerts.
- ports:
    - {port: {{ $channel.port | default 443 }}, protocol: TCP}
  {{- with $channel.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
To the proxy, and the rules of networkPolicy.extraEgress for a component's pods. Takes root and component.
*/}}
{{- define "prefect-hamilton.network.extraEgress" -}}
{{- $isPassive := has .component (list "postgres" "valkey" "git-server") -}}
{{- $proxy := $isPassive | ternary "" (include "prefect-hamilton.network.proxy" .root) -}}
{{- list $proxy (include "prefect-hamilton.network.configuredEgress" .) | compact | join "\n" -}}
{{- end }}

{{- define "prefect-hamilton.network.configuredEgress" -}}
{{- with get (.root.Values.networkPolicy.extraEgress | default dict) .component -}}
# networkPolicy.extraEgress
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Ingress of a UI: every peer, or with `networkPolicy.webFrom` those peers, flow pods and the pods of
some components of this release. Takes root, components and port.
*/}}
{{- define "prefect-hamilton.network.web" -}}
{{- if .root.Values.networkPolicy.webFrom -}}
- from:
    {{- $root := .root }}
    {{- range .components }}
    {{- include "prefect-hamilton.network.peer" (dict "root" $root "component" .) | nindent 4 }}
    {{- end }}
    {{- include "prefect-hamilton.network.flows" .root | nindent 4 }}
    # networkPolicy.webFrom
    {{- toYaml .root.Values.networkPolicy.webFrom | nindent 4 }}
  ports:
    - {port: {{ .port }}, protocol: TCP}
{{- else -}}
# Open to every peer; restrict it with networkPolicy.webFrom.
- ports:
    - {port: {{ .port }}, protocol: TCP}
{{- end }}
{{- end }}
