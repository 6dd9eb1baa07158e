{{/* A peer: pods of a component of this release. Takes root and component; optionally namespace. */}}
{{- define "prefect-hamilton.network.peer" -}}
{{- $isForeign := and .namespace (ne .namespace .root.Release.Namespace) -}}
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
      kubernetes.io/metadata.name: {{ .namespace | toYaml }}
  {{- end }}
{{- end }}

{{/* Flow pods as a peer: Prefect sets their label app.kubernetes.io/name. */}}
{{- define "prefect-hamilton.network.flows" -}}
{{- $namespace := include "prefect-hamilton.flows.namespace" . }}
{{- include "prefect-hamilton.network.peer" (dict "root" . "component" "flow-run" "namespace" $namespace) }}
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

{{/* The Prefect API: the release's server, or the port of an external one at any address. */}}
{{- define "prefect-hamilton.network.api" -}}
{{- if .Values.server.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict
      "root" .
      "component" "server"
      "namespace" .Release.Namespace) | nindent 4 }}
  ports:
    - {port: 4200, protocol: TCP}
{{- else -}}
# The Prefect API, at {{ .Values.api.url }}.
- ports:
    - {port: {{ include "prefect-hamilton.network.urlPort" .Values.api.url }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* The port of a URL: the one that it names, or its scheme's. */}}
{{- define "prefect-hamilton.network.urlPort" -}}
{{- /* An address such as git@host:path is none; validation refuses it with a sentence. */}}
{{- $url := contains "://" . | ternary . "" | urlParse }}
{{- $ports := dict "https" "443" "ssh" "22" "git" "9418" }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (get $ports $url.scheme | default "80") }}
{{- end }}

{{/* PostgreSQL: the bundled one, or the port of an external one at any address. */}}
{{- define "prefect-hamilton.network.postgres" -}}
{{- if .Values.postgres.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" . "component" "postgres") | nindent 4 }}
  ports:
    - {port: 5432, protocol: TCP}
{{- else if .Values.postgres.host -}}
# PostgreSQL, at {{ .Values.postgres.host }}.
- ports:
    - {port: {{ .Values.postgres.port }}, protocol: TCP}
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

{{- define "prefect-hamilton.network.hamilton-ui" -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" . "component" "hamilton-ui") | nindent 4 }}
  ports:
    - {port: 8241, protocol: TCP}
{{- end }}

{{/* The Git server of the flows: the bundled one, or the port of an external one at any address. */}}
{{- define "prefect-hamilton.network.git" -}}
{{- if .Values.gitServer.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict
      "root" .
      "component" "git-server"
      "namespace" .Release.Namespace) | nindent 4 }}
  ports:
    - {port: 9418, protocol: TCP}
{{- else if include "prefect-hamilton.flows.isRegistered" . -}}
{{- $urls := .Values.flows.repository | list }}
{{- range .Values.flows.repositories }}
{{- $urls = append $urls .url }}
{{- end }}
{{- $ports := list }}
{{- range compact $urls }}
{{- $ports = append $ports (contains "://" . | ternary (include "prefect-hamilton.network.urlPort" .) "22") }}
{{- end -}}
# The Git server of {{ .Values.flows.repositories | empty | ternary "flows.repository" "flows.repositories" }}.
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
