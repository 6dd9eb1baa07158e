{{- define "prefect-hamilton.postgres.name" -}}
{{ include "prefect-hamilton.fullname" . }}-postgres
{{- end }}

{{- define "prefect-hamilton.postgres.host" -}}
{{- .Values.postgres.enabled | ternary (include "prefect-hamilton.postgres.name" .) .Values.postgres.host }}
{{- end }}

{{- define "prefect-hamilton.postgres.port" -}}
{{- .Values.postgres.enabled | ternary 5432 (int .Values.postgres.port) }}
{{- end }}

{{- define "prefect-hamilton.postgres.secretName" -}}
{{- .Values.postgres.existingSecret | default (include "prefect-hamilton.postgres.name" .) }}
{{- end }}

{{/* Whether the Secret with the passwords is made by our Job, so that it may not be there yet. */}}
{{- define "prefect-hamilton.postgres.waitsForSecret" -}}
{{- if and .Values.postgres.enabled (not .Values.postgres.existingSecret) }}true{{ end }}
{{- end }}

{{/* Whether somebody uses PostgreSQL, ours or another. */}}
{{- define "prefect-hamilton.postgres.isUsed" -}}
{{- if or (and .Values.server.enabled (not .Values.server.sqlite.enabled)) .Values.hamiltonUi.enabled }}true{{ end }}
{{- end }}

{{/* The Secret with the warehouse's URL; empty when flows get none. */}}
{{- define "prefect-hamilton.warehouse.secretName" -}}
{{- if .Values.warehouse.enabled }}
{{- .Values.warehouse.existingSecret | default (.Values.postgres.enabled | ternary (include "prefect-hamilton.postgres.secretName" .) "") }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.warehouse.key" -}}
{{- empty .Values.warehouse.existingSecret | ternary "warehouse-url" .Values.warehouse.key }}
{{- end }}
