{{- define "prefect-hamilton.valkey.name" -}}
{{ include "prefect-hamilton.fullname" . }}-valkey
{{- end }}

{{- define "prefect-hamilton.valkey.secretName" -}}
{{- .Values.valkey.existingSecret | default (include "prefect-hamilton.valkey.name" .) }}
{{- end }}

{{/* Whether the server uses Valkey, bundled or external. */}}
{{- define "prefect-hamilton.valkey.isUsed" -}}
{{- if and .Values.server.enabled (or .Values.valkey.enabled .Values.valkey.existingSecret) }}true{{ end }}
{{- end }}
