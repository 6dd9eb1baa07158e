{{/* The UIs of this release: a YAML list of component, host, service, port and certificate (a Secret). */}}
{{- define "prefect-hamilton.ingress.uis" -}}
{{- if .Values.server.enabled }}
- component: server
  host: {{ .Values.server.host | quote }}
  service: {{ include "prefect-hamilton.server.name" . }}
  port: {{ .Values.server.service.port }}
  certificate: {{ include "prefect-hamilton.server.name" . }}-tls
{{- end }}
{{- if .Values.hamiltonUi.enabled }}
- component: hamilton-ui
  host: {{ .Values.hamiltonUi.host | quote }}
  service: {{ include "prefect-hamilton.hamilton-ui.name" . }}
  port: {{ .Values.hamiltonUi.service.port }}
  certificate: {{ include "prefect-hamilton.hamilton-ui.keptName" . }}-tls
{{- end }}
{{- end }}
