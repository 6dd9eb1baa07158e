{{- define "prefect-hamilton.background-services.name" -}}
{{ include "prefect-hamilton.fullname" . }}-background-services
{{- end }}

{{- define "prefect-hamilton.background-services.isSeparate" -}}
{{- if and .Values.server.enabled (include "prefect-hamilton.server.isSplit" .) }}true{{ end }}
{{- end }}

{{- define "prefect-hamilton.background-services.env" -}}
{{ include "prefect-hamilton.server.env" . }}
{{- if .Values.server.metrics }}
PREFECT_HAMILTON_SERVICES_METRICS_PORT: 9090
{{- end }}
{{- end }}
