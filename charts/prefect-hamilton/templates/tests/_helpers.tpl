{{- define "prefect-hamilton.tests.env" -}}
{{- if or .Values.server.enabled (include "prefect-hamilton.hasWorkers" .) }}
{{ include "prefect-hamilton.api.env" . }}
{{- end }}
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- if include "prefect-hamilton.tests.sendsAlerts" . }}
{{ include "prefect-hamilton.bootstrap.release" . }}
{{- end }}
{{- if .Values.hamiltonUi.enabled }}
HAMILTON_API_URL: {{ include "prefect-hamilton.hamilton-ui.apiUrl" . | toYaml }}
HAMILTON_API_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
    key: api-key
{{- end }}
{{- end }}

{{/* Something if `helm test` sends a message through each channel of the alerts. */}}
{{- define "prefect-hamilton.tests.sendsAlerts" -}}
{{- if and .Values.bootstrap.enabled .Values.alerts.channels }}true{{ end }}
{{- end }}
