{{/* Names: at most 40 characters, so that every suffix fits into the 63 of a label. */}}

{{- define "prefect-hamilton.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "prefect-hamilton.fullname" -}}
{{- $name := include "prefect-hamilton.name" . }}
{{- $own := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $own | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Version of this project: of the images and the objects. Flux appends `+` and a digest to the chart's version. */}}
{{- define "prefect-hamilton.version" -}}
{{- .Chart.Version | splitList "+" | first }}
{{- end }}

{{- define "prefect-hamilton.selectorLabels" -}}
app.kubernetes.io/name: {{ include "prefect-hamilton.name" .root | toYaml }}
app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Metadata of an object. Takes root, component and name; optionally annotations, namespace. */}}
{{- define "prefect-hamilton.metadata" -}}
{{- $annotations := merge (dict) (.annotations | default dict) (.root.Values.global.annotations | default dict) -}}
name: {{ .name | toYaml }}
namespace: {{ .namespace | default .root.Release.Namespace | toYaml }}
labels:
  {{- include "prefect-hamilton.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ include "prefect-hamilton.version" .root | quote }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  {{- with merge (dict) (.labels | default dict) (.root.Values.global.labels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Name of a component's ServiceAccount. Takes root, account and component. */}}
{{- define "prefect-hamilton.serviceAccountName" -}}
{{- $own := printf "%s-%s" (include "prefect-hamilton.fullname" .root) .component }}
{{- .account.name | default (.account.create | ternary $own "default") }}
{{- end }}

{{/*
Host name of a Service of this release for flow pods: with its namespace only when one of theirs differs.
Takes root and name.
*/}}
{{- define "prefect-hamilton.serviceHost" -}}
{{- $namespaces := keys (include "prefect-hamilton.flows.poolsByNamespace" .root | fromYaml) }}
{{- $isLocal := without $namespaces .root.Release.Namespace | empty }}
{{- $isLocal | ternary .name (printf "%s.%s" .name .root.Release.Namespace) }}
{{- end }}

{{/*
Address of a UI for browsers; empty when it is not known. Takes root and component, the component's
values.
*/}}
{{- define "prefect-hamilton.publicUrl" -}}
{{- if .component.url }}
{{- .component.url }}
{{- else if and .component.host (or .root.Values.ingress.enabled .root.Values.gateway.enabled) }}
{{- $ingress := .root.Values.ingress }}
{{- $gateway := .root.Values.gateway }}
{{- $isTls := or (and $ingress.enabled $ingress.tls) (and $gateway.enabled $gateway.tls) }}
{{- printf "%s://%s" ($isTls | ternary "https" "http") .component.host }}
{{- end }}
{{- end }}
