{{- define "prefect-hamilton.server.name" -}}
{{ include "prefect-hamilton.fullname" . }}-server
{{- end }}

{{- define "prefect-hamilton.server.settings" -}}
{{- include "prefect-hamilton.settings" (dict "root" . "own" .Values.server) }}
{{- end }}

{{/* Whether the background services have a separate Deployment. */}}
{{- define "prefect-hamilton.server.isSplit" -}}
{{- if or (gt (int .Values.server.replicas) 1) .Values.server.autoscaling.enabled .Values.backgroundServices.separate }}true{{ end }}
{{- end }}

{{/* Whether the server's environment turns its protection against CSRF on. */}}
{{- define "prefect-hamilton.server.wantsCsrfTokens" -}}
{{- $env := (include "prefect-hamilton.server.settings" . | fromYaml).env | default dict }}
{{- if $env.PREFECT_SERVER_CSRF_PROTECTION_ENABLED }}true{{ end }}
{{- end }}

{{- define "prefect-hamilton.server.url" -}}
{{- include "prefect-hamilton.publicUrl" (dict "root" . "component" .Values.server) }}
{{- end }}

{{/* Environment of what reads and writes the server's database. */}}
{{- define "prefect-hamilton.server.databaseEnv" -}}
{{- if .Values.server.sqlite.enabled -}}
PREFECT_HOME: /tmp/prefect
PREFECT_SERVER_DATABASE_DRIVER: sqlite+aiosqlite
PREFECT_SERVER_DATABASE_NAME: /data/prefect.db
{{- else -}}
PREFECT_HOME: /tmp/prefect
PREFECT_SERVER_DATABASE_DRIVER: postgresql+asyncpg
PREFECT_SERVER_DATABASE_HOST: {{ include "prefect-hamilton.postgres.host" . | toYaml }}
PREFECT_SERVER_DATABASE_PORT: {{ include "prefect-hamilton.postgres.port" . }}
PREFECT_SERVER_DATABASE_NAME: {{ .Values.postgres.databases.prefect.name | toYaml }}
PREFECT_SERVER_DATABASE_USER: {{ .Values.postgres.databases.prefect.user | toYaml }}
PREFECT_SERVER_DATABASE_PASSWORD:
  secretKeyRef:
    name: {{ include "prefect-hamilton.postgres.secretName" . | toYaml }}
    key: {{ .Values.postgres.databases.prefect.key | toYaml }}
PREFECT_SERVER_DATABASE_MIGRATE_ON_START: false
PREFECT_SERVER_REGISTER_BLOCKS_ON_START: false
{{- if .Values.postgres.tls.enabled }}
PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED: true
{{- if .Values.postgres.tls.caSecret }}
PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_CA_FILE: /postgres-ca/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment that API and background services share. */}}
{{- define "prefect-hamilton.server.env" -}}
{{ include "prefect-hamilton.server.databaseEnv" . }}
PREFECT_SERVER_ANALYTICS_ENABLED: false
PREFECT_SERVER_LOGGING_LEVEL: {{ .Values.server.logLevel | toYaml }}
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- if eq .Values.auth.type "basic" }}
PREFECT_SERVER_API_AUTH_STRING:
  {{- include "prefect-hamilton.auth.reference" . | nindent 2 }}
{{- end }}
{{- with include "prefect-hamilton.server.url" . }}
PREFECT_UI_URL: {{ . | toYaml }}
{{- end }}
{{- with .Values.server.retention }}
PREFECT_SERVER_EVENTS_RETENTION_PERIOD: {{ printf "P%dD" (int .eventsDays) }}
{{- if .flowRunsDays }}
PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED: events,flow_runs
PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD: {{ mul .flowRunsDays 86400 }}
{{- end }}
{{- end }}
{{- /* Only the server ends a cancelled run whose pod has not started, after this time. A pod that has
started ends its run within 30 seconds. */}}
PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS: 60
{{- /* A pod that waits longer for a node would lose its slot of a limit of its deployment. */}}
PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION: 3600
{{- /* In memory, where Prefect keeps them, leases would end with the server. */}}
PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: {{ ternary
  "prefect.server.concurrency.lease_storage.filesystem" "prefect_hamilton.server.lease_storage"
  .Values.server.sqlite.enabled }}
{{- if include "prefect-hamilton.valkey.isUsed" . }}
PREFECT_MESSAGING_BROKER: prefect_redis.messaging
PREFECT_MESSAGING_CACHE: prefect_redis.messaging
PREFECT_SERVER_EVENTS_CAUSAL_ORDERING: prefect_redis.ordering
PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE: prefect_redis.cleanup_queue
{{- /* Another replica does again what takes longer. The receiver of a message has 12 seconds for its answer. */}}
PREFECT_REDIS_MESSAGING_CONSUMER_MIN_IDLE_TIME: 15
{{- /* With that time, an event is evaluated, and an action done, after an outage of the database of 10 minutes. */}}
PREFECT_REDIS_MESSAGING_CONSUMER_MAX_RETRIES: 40
{{- range list "PREFECT_REDIS_MESSAGING_URL" "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL" "PREFECT_SERVER_DOCKET_URL" }}
{{ . }}:
  secretKeyRef:
    name: {{ include "prefect-hamilton.valkey.secretName" $ | toYaml }}
    key: {{ $.Values.valkey.urlKey | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment of the API and the UI. */}}
{{- define "prefect-hamilton.server.apiEnv" -}}
{{ include "prefect-hamilton.server.env" . }}
{{- if eq .Values.auth.type "basic" }}
{{- /* Only there while the credential is being replaced: docs/operate.md. */}}
PREFECT_HAMILTON_SERVER_SECOND_AUTH_STRING:
  secretKeyRef:
    name: {{ include "prefect-hamilton.auth.secretName" . | toYaml }}
    key: second-auth-string
    optional: true
{{- end }}
PREFECT_SERVER_UI_API_URL: /api
PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT: false
PREFECT_SERVER_UI_STATIC_DIRECTORY: /tmp/prefect-ui
{{- if .Values.server.metrics }}
PREFECT_SERVER_METRICS_ENABLED: true
{{- end }}
{{- end }}

{{/* Mounts of the containers that open the server's database; `server.volumes` are their volumes. */}}
{{- define "prefect-hamilton.server.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.server.sqlite.enabled }}
- {name: data, mountPath: /data}
{{- else if include "prefect-hamilton.postgres.waitsForSecret" . }}
# Delays the pod until the Secret exists: with only a variable, the kubelet retries after 10 s.
- {name: postgres-secret, mountPath: /postgres-secret, readOnly: true}
{{- end }}
{{- if and .Values.postgres.tls.enabled .Values.postgres.tls.caSecret }}
- {name: postgres-ca, mountPath: /postgres-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.server.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.server.sqlite.enabled }}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.server.sqlite.storage.existingClaim | default (include "prefect-hamilton.server.name" .) | toYaml }}
{{- else if include "prefect-hamilton.postgres.waitsForSecret" . }}
- name: postgres-secret
  secret:
    secretName: {{ include "prefect-hamilton.postgres.secretName" . | toYaml }}
    items:
      - {key: {{ .Values.postgres.databases.prefect.key | toYaml }}, path: password}
{{- end }}
{{- if and .Values.postgres.tls.enabled .Values.postgres.tls.caSecret }}
- name: postgres-ca
  secret:
    secretName: {{ .Values.postgres.tls.caSecret | toYaml }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.server.serviceAccountName" -}}
{{- include "prefect-hamilton.serviceAccountName" (dict
  "root" .
  "account" .Values.server.serviceAccount
  "component" "server") }}
{{- end }}
