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

{{/* Whether the secrets Job creates the Secret with the passwords, so that pods may start before it. */}}
{{- define "prefect-hamilton.postgres.waitsForSecret" -}}
{{- if and .Values.postgres.enabled (not .Values.postgres.existingSecret) }}true{{ end }}
{{- end }}

{{/* Whether this release needs PostgreSQL, bundled or external. */}}
{{- define "prefect-hamilton.postgres.isUsed" -}}
{{- if or (and .Values.server.enabled (not .Values.server.sqlite.enabled)) .Values.hamiltonUi.enabled }}true{{ end }}
{{- end }}

{{/* Whether flows load into the bundled PostgreSQL. */}}
{{- define "prefect-hamilton.warehouse.isBundled" -}}
{{- if and .Values.warehouse.enabled .Values.postgres.enabled (not .Values.warehouse.existingSecret) }}true{{ end }}
{{- end }}

{{/* The Secret with the warehouse's URL; empty when flows have no warehouse. */}}
{{- define "prefect-hamilton.warehouse.secretName" -}}
{{- if include "prefect-hamilton.warehouse.isBundled" . }}
{{- include "prefect-hamilton.postgres.secretName" . }}
{{- else if .Values.warehouse.enabled }}
{{- .Values.warehouse.existingSecret }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.warehouse.key" -}}
{{- empty .Values.warehouse.existingSecret | ternary "warehouse-url" .Values.warehouse.key }}
{{- end }}

{{/* What creates users and databases; psql runs it. */}}
{{- define "prefect-hamilton.postgres.databasesSql" -}}
{{- $databases := .Values.postgres.databases }}
{{- $byPassword := dict
  "PREFECT_PASSWORD" $databases.prefect
  "HAMILTON_PASSWORD" $databases.hamilton
  "WAREHOUSE_PASSWORD" (dict "name" "warehouse" "user" "warehouse") }}
{{- range $variable, $database := $byPassword }}
\getenv password {{ $variable }}
CREATE ROLE "{{ $database.user }}" LOGIN PASSWORD :'password';
CREATE DATABASE "{{ $database.name }}" OWNER "{{ $database.user }}";
REVOKE CONNECT ON DATABASE "{{ $database.name }}" FROM PUBLIC;
{{- end }}
{{- end }}

{{/* The sidecar with metrics, connected to Prefect's database for those of its tables. Takes root and settings. */}}
{{- define "prefect-hamilton.postgres.exporter" -}}
{{- $exporter := .root.Values.monitoring.postgresExporter -}}
{{- $database := .root.Values.postgres.databases.prefect.name -}}
{{- $secret := include "prefect-hamilton.postgres.secretName" .root -}}
- name: exporter
  {{- include "prefect-hamilton.container" (dict
    "root" .root
    "image" $exporter.image
    "settings" .settings) | nindent 2 }}
  env:
    # Each scrape opens a connection: queries that wait for a lock would use up those of the server. Prometheus waits 10 s.
    - name: DATA_SOURCE_URI
      value: {{ printf "127.0.0.1:5432/%s?sslmode=disable&statement_timeout=5000" $database | quote }}
    - name: DATA_SOURCE_USER
      value: postgres
    - name: DATA_SOURCE_PASS
      valueFrom:
        secretKeyRef: {name: {{ $secret | toYaml }}, key: postgres-password}
  ports:
    - name: metrics
      containerPort: 9187
  resources:
    {{- toYaml $exporter.resources | nindent 4 }}
{{- end }}
