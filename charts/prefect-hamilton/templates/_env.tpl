{{/*
Environment of a container as a list: the chart's own (YAML text, name to value or source) and the
settings' `env` merged over it; a null removes a name. Fields of the pod come first, so that other
variables can refer to them: $(POD_NAMESPACE). Takes own and settings.
*/}}
{{- define "prefect-hamilton.env" -}}
{{- $own := fromYaml .own -}}
{{- range $name, $value := .settings.env -}}
{{- $_ := set $own $name $value -}}
{{- end -}}
{{- with $own -}}
env:
{{- $others := dict }}
{{- range $name, $value := . }}
{{- if and (kindIs "map" $value) (hasKey $value "fieldRef") }}
  - name: {{ $name }}
    valueFrom:
      {{- toYaml $value | nindent 6 }}
{{- else }}
{{- $_ := set $others $name $value }}
{{- end }}
{{- end }}
{{- range $name, $value := $others }}
{{- if kindIs "map" $value }}
  - name: {{ $name | toYaml }}
    valueFrom:
      {{- toYaml $value | nindent 6 }}
{{- else if contains "\n" (toString $value) }}
  - name: {{ $name }}
    value: |-
      {{- $value | nindent 6 }}
{{- else if ne (kindOf $value) "invalid" }}
  - name: {{ $name | toYaml }}
    value: {{ include "prefect-hamilton.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .settings.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A scalar as text. Helm would write a large whole number with an exponent. */}}
{{- define "prefect-hamilton.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "prefect-hamilton.api.url" -}}
{{- if .Values.server.enabled }}
{{- $host := include "prefect-hamilton.serviceHost" (dict "root" . "name" (include "prefect-hamilton.server.name" .)) }}
{{- printf "http://%s:%v/api" $host .Values.server.service.port }}
{{- else }}
{{- .Values.api.url }}
{{- end }}
{{- end }}

{{/* Environment of every client of the API. */}}
{{- define "prefect-hamilton.api.env" -}}
PREFECT_API_URL: {{ include "prefect-hamilton.api.url" . | toYaml }}
{{ include "prefect-hamilton.auth.env" . }}
{{- with include "prefect-hamilton.server.url" . }}
PREFECT_UI_URL: {{ . | toYaml }}
{{- end }}
{{- end }}

{{/* Environment of a program of the chart's own image that logs. */}}
{{- define "prefect-hamilton.logs.env" -}}
{{- if eq .Values.logs.format "json" -}}
PREFECT_LOGGING_FORMATTERS_JSON_CLASS: prefect_hamilton.logs.JsonFormatter
PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER: json
PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER: json
{{- end }}
{{- end }}

{{/* The Secret with the API's credential, and its key. */}}
{{- define "prefect-hamilton.auth.secretName" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "prefect-hamilton.fullname" .)) }}
{{- end }}

{{- define "prefect-hamilton.auth.key" -}}
{{- .Values.auth.key | default (eq .Values.auth.type "apiKey" | ternary "api-key" "auth-string") }}
{{- end }}

{{- define "prefect-hamilton.auth.reference" -}}
secretKeyRef:
  name: {{ include "prefect-hamilton.auth.secretName" . | toYaml }}
  key: {{ include "prefect-hamilton.auth.key" . | toYaml }}
{{- end }}

{{/* Environment with a client's credential. */}}
{{- define "prefect-hamilton.auth.env" -}}
{{- if ne .Values.auth.type "none" -}}
{{ eq .Values.auth.type "apiKey" | ternary "PREFECT_API_KEY" "PREFECT_API_AUTH_STRING" }}:
  {{- include "prefect-hamilton.auth.reference" . | nindent 2 }}
{{- end }}
{{- end }}
