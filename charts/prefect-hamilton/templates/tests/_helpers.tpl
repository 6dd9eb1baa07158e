{{- define "prefect-hamilton.tests.env" -}}
{{- if or .Values.server.enabled (include "prefect-hamilton.hasWorkers" .) }}
{{ include "prefect-hamilton.api.env" . }}
{{- end }}
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- if .Values.hamiltonUi.enabled }}
HAMILTON_API_URL: {{ include "prefect-hamilton.hamilton-ui.apiUrl" . | toYaml }}
HAMILTON_API_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
    key: api-key
{{- end }}
{{- end }}
