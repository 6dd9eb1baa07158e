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

{{/* Flow pods as a peer: their label `name` is Prefect's. */}}
{{- define "prefect-hamilton.network.flows" -}}
{{- include "prefect-hamilton.network.peer" (dict "root" . "component" "flow-run" "namespace" (include "prefect-hamilton.flows.namespace" .)) }}
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

{{/* The Prefect API: our server, or a port of anything where it is elsewhere. */}}
{{- define "prefect-hamilton.network.api" -}}
{{- if .Values.server.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" . "component" "server" "namespace" .Release.Namespace) | nindent 4 }}
  ports:
    - {port: 4200, protocol: TCP}
{{- else -}}
# The Prefect API, at {{ .Values.api.url }}.
- ports:
    - {port: {{ include "prefect-hamilton.network.urlPort" .Values.api.url }}, protocol: TCP}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.network.urlPort" -}}
{{- $url := urlParse . }}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "https" | ternary "443" (eq $url.scheme "ssh" | ternary "22" (eq $url.scheme "git" | ternary "9418" "80"))) }}
{{- end }}

{{/* PostgreSQL: ours, or its port anywhere. */}}
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
# Valkey or Redis elsewhere.
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

{{/* The Git server that flows are cloned from: ours, or its port anywhere. */}}
{{- define "prefect-hamilton.network.git" -}}
{{- if .Values.gitServer.enabled -}}
- to:
    {{- include "prefect-hamilton.network.peer" (dict "root" . "component" "git-server" "namespace" .Release.Namespace) | nindent 4 }}
  ports:
    - {port: 9418, protocol: TCP}
{{- else if .Values.flows.repository -}}
{{- $port := "22" -}}
{{- if contains "://" .Values.flows.repository -}}
{{- $port = include "prefect-hamilton.network.urlPort" .Values.flows.repository -}}
{{- end -}}
# The Git server of flows.repository.
- ports:
    - {port: {{ $port }}, protocol: TCP}
{{- end }}
{{- end }}

{{/*
A NetworkPolicy. Takes root, component (of the pods), name, ingress and egress (YAML texts; no text:
nothing is let through); optionally namespace.
*/}}
{{- define "prefect-hamilton.networkPolicy" -}}
{{- $more := get (.root.Values.networkPolicy.extraEgress | default dict) .component }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "prefect-hamilton.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- if ne .component "flow-run" }}
      app.kubernetes.io/name: {{ include "prefect-hamilton.name" .root | toYaml }}
      {{- end }}
      app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
      app.kubernetes.io/component: {{ .component }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress | trim }}
  ingress:
    {{- regexReplaceAll "\n+" . "\n" | nindent 4 }}
  {{- end }}
  {{- with .egress | trim }}
  egress:
    {{- regexReplaceAll "\n+" . "\n" | nindent 4 }}
    {{- with $more }}
    # networkPolicy.extraEgress
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- else }}
  {{- with $more }}
  egress:
    # networkPolicy.extraEgress
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}

{{/*
Who may open a web page: our own pods of the components given, and `networkPolicy.webFrom`. Takes
root, components and port.
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
