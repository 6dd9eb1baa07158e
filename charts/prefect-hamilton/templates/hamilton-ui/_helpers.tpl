{{- define "prefect-hamilton.hamilton-ui.name" -}}
{{ include "prefect-hamilton.fullname" . }}-ui
{{- end }}

{{/* Name of what outlives an upgrade, unchanged since 0.1.0: the volume, the Secret, the certificate. */}}
{{- define "prefect-hamilton.hamilton-ui.keptName" -}}
{{ include "prefect-hamilton.fullname" . }}-hamilton-ui
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.secretName" -}}
{{- .Values.hamiltonUi.existingSecret | default (include "prefect-hamilton.hamilton-ui.keptName" .) }}
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.settings" -}}
{{- include "prefect-hamilton.settings" (dict "root" . "own" .Values.hamiltonUi) }}
{{- end }}

{{/* Address of the Service, as flow pods use it. */}}
{{- define "prefect-hamilton.hamilton-ui.apiUrl" -}}
{{- $name := include "prefect-hamilton.hamilton-ui.name" . }}
{{- $host := include "prefect-hamilton.serviceHost" (dict "root" . "name" $name) }}
{{- printf "http://%s:%v" $host .Values.hamiltonUi.service.port }}
{{- end }}

{{/* Address for browsers; that of a port-forward when no other is known. */}}
{{- define "prefect-hamilton.hamilton-ui.url" -}}
{{- include "prefect-hamilton.publicUrl" (dict
  "root" .
  "component" .Values.hamiltonUi) | default "http://localhost:8241" }}
{{- end }}

{{/* The host names under which the Hamilton UI answers, with a comma between them. */}}
{{- define "prefect-hamilton.hamilton-ui.allowedHosts" -}}
{{- $hosts := list }}
{{- range $name := list (include "prefect-hamilton.hamilton-ui.name" .) (include "prefect-hamilton.hamilton-ui.keptName" .) }}
{{- $qualified := printf "%s.$(POD_NAMESPACE)" $name }}
{{- $hosts = concat $hosts (list $name $qualified (printf "%s.svc" $qualified) (printf "%s.svc.cluster.local" $qualified)) }}
{{- end }}
{{- $public := (urlParse (include "prefect-hamilton.hamilton-ui.url" .)).host | splitList ":" | first }}
{{- concat $hosts (list $public) (.Values.hamiltonUi.allowedHosts | default list) | uniq | join "," }}
{{- end }}

{{/* Environment that every container of the Hamilton UI shares. */}}
{{- define "prefect-hamilton.hamilton-ui.env" -}}
{{- $database := .Values.postgres.databases.hamilton -}}
DB_HOST: {{ include "prefect-hamilton.postgres.host" . | toYaml }}
DB_PORT: {{ include "prefect-hamilton.postgres.port" . }}
DB_NAME: {{ $database.name | toYaml }}
DB_USER: {{ $database.user | toYaml }}
DB_PASSWORD:
  secretKeyRef:
    name: {{ include "prefect-hamilton.postgres.secretName" . | toYaml }}
    key: {{ $database.key | toYaml }}
PGCONNECT_TIMEOUT: 5
{{- if .Values.postgres.tls.enabled }}
PGSSLMODE: verify-full
PGSSLROOTCERT: {{ empty .Values.postgres.tls.caSecret | ternary "system" "/postgres-ca/ca.crt" }}
{{- end }}
DJANGO_SECRET_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
    key: django-secret-key
HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
    key: api-key
POD_NAMESPACE:
  fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
HAMILTON_ALLOWED_HOSTS: {{ include "prefect-hamilton.hamilton-ui.allowedHosts" . | toYaml }}
{{- if hasPrefix "https://" (include "prefect-hamilton.hamilton-ui.url" .) }}
HAMILTON_UI_HTTPS: true
{{- end }}
{{- if .Values.hamiltonUi.s3.bucket }}
HAMILTON_BLOB_STORE: s3
HAMILTON_S3_BUCKET: {{ .Values.hamiltonUi.s3.bucket | toYaml }}
{{- with .Values.hamiltonUi.s3.region }}
HAMILTON_S3_REGION: {{ . | toYaml }}
{{- end }}
{{- with .Values.hamiltonUi.s3.endpointUrl }}
HAMILTON_S3_ENDPOINT_URL: {{ . | toYaml }}
{{- end }}
{{- with .Values.hamiltonUi.s3.existingSecret }}
AWS_ACCESS_KEY_ID:
  secretKeyRef:
    name: {{ . | toYaml }}
    key: access-key-id
AWS_SECRET_ACCESS_KEY:
  secretKeyRef:
    name: {{ . | toYaml }}
    key: secret-access-key
{{- end }}
{{- else }}
HAMILTON_BLOB_STORE: local
{{- end }}
{{- end }}

{{/* Environment of the containers that mount the volume: they read and write blobs. */}}
{{- define "prefect-hamilton.hamilton-ui.blobEnv" -}}
{{ include "prefect-hamilton.hamilton-ui.env" . }}
{{- if not .Values.hamiltonUi.s3.bucket }}
HAMILTON_LOCAL_BLOB_DIR: /data/blobs
{{- end }}
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.serverEnv" -}}
{{ include "prefect-hamilton.hamilton-ui.blobEnv" . }}
WEB_CONCURRENCY: {{ .Values.hamiltonUi.processes }}
{{- if .Values.hamiltonUi.metrics }}
HAMILTON_UI_METRICS_PORT: 9090
{{- end }}
{{- end }}

{{/* Environment of the CronJob, which does not mount the volume. */}}
{{- define "prefect-hamilton.hamilton-ui.retentionEnv" -}}
{{ include "prefect-hamilton.hamilton-ui.env" . }}
{{- if not .Values.hamiltonUi.s3.bucket }}
HAMILTON_LOCAL_BLOB_DIR: /tmp
{{- end }}
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if not .Values.hamiltonUi.s3.bucket }}
- {name: data, mountPath: /data}
{{- end }}
{{- if include "prefect-hamilton.postgres.waitsForSecret" . }}
# Delays the pod until the Secret exists: with only a variable, the kubelet retries after 10 s.
- {name: postgres-secret, mountPath: /postgres-secret, readOnly: true}
{{- end }}
{{- if and .Values.postgres.tls.enabled .Values.postgres.tls.caSecret }}
- {name: postgres-ca, mountPath: /postgres-ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if not .Values.hamiltonUi.s3.bucket }}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.hamiltonUi.storage.existingClaim | default (include "prefect-hamilton.hamilton-ui.keptName" .) | toYaml }}
{{- end }}
{{- if include "prefect-hamilton.postgres.waitsForSecret" . }}
- name: postgres-secret
  secret:
    secretName: {{ include "prefect-hamilton.postgres.secretName" . | toYaml }}
    items:
      - {key: {{ .Values.postgres.databases.hamilton.key | toYaml }}, path: password}
{{- end }}
{{- if and .Values.postgres.tls.enabled .Values.postgres.tls.caSecret }}
- name: postgres-ca
  secret:
    secretName: {{ .Values.postgres.tls.caSecret | toYaml }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.hamilton-ui.serviceAccountName" -}}
{{- include "prefect-hamilton.serviceAccountName" (dict
  "root" .
  "account" .Values.hamiltonUi.serviceAccount
  "component" "hamilton-ui") }}
{{- end }}
