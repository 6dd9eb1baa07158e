{{- define "prefect-hamilton.metrics.name" -}}
{{ include "prefect-hamilton.fullname" . }}-metrics
{{- end }}

{{/* Environment of the exporter of metrics. */}}
{{- define "prefect-hamilton.metrics.env" -}}
{{ include "prefect-hamilton.api.env" . }}
PREFECT_HOME: /tmp/prefect
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- if .Values.server.enabled }}
PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: {{ include "prefect-hamilton.server.wantsCsrfTokens" . | eq "true" }}
PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: false
{{- end }}
{{- end }}

{{/* Line of an alert's annotations with its section in docs/runbooks.md, if known. Takes root and alert. */}}
{{- define "prefect-hamilton.alert.runbook" -}}
{{- $home := .root.Chart.Home | default "" -}}
{{- $known := empty $home | ternary "" (printf "%s/blob/main/docs/runbooks.md" (trimSuffix "/" $home)) -}}
{{- with .root.Values.prometheusRule.runbookUrl | default $known -}}
{{- printf "runbook_url: %s#%s" . (lower $.alert) | nindent 12 }}
{{- end }}
{{- end }}
