{{- define "prefect-hamilton.background-services.name" -}}
{{ include "prefect-hamilton.fullname" . }}-background-services
{{- end }}

{{- define "prefect-hamilton.background-services.isSeparate" -}}
{{- if and .Values.server.enabled (include "prefect-hamilton.server.isSplit" .) }}true{{ end }}
{{- end }}
