{{- define "prefect-hamilton.git-server.name" -}}
{{ include "prefect-hamilton.fullname" . }}-git-server
{{- end }}
