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

{{/* The sidecar with metrics, also of the streams that server pods read. Takes root and settings. */}}
{{- define "prefect-hamilton.valkey.exporter" -}}
{{- $exporter := .root.Values.monitoring.valkeyExporter -}}
{{- $secret := include "prefect-hamilton.valkey.secretName" .root -}}
- name: exporter
  {{- include "prefect-hamilton.container" (dict
    "root" .root
    "image" $exporter.image
    "settings" .settings) | nindent 2 }}
  env:
    - name: REDIS_ADDR
      value: redis://127.0.0.1:6379
    - name: REDIS_PASSWORD
      valueFrom:
        secretKeyRef: {name: {{ $secret | toYaml }}, key: password}
    # Of events, and of tasks of the background services.
    - name: REDIS_EXPORTER_CHECK_STREAMS
      value: events,prefect-server:stream
  ports:
    - name: metrics
      containerPort: 9121
  resources:
    {{- toYaml $exporter.resources | nindent 4 }}
{{- end }}
