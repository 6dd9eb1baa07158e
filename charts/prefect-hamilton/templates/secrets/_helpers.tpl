{{- define "prefect-hamilton.secrets.name" -}}
{{ include "prefect-hamilton.fullname" . }}-secrets
{{- end }}

{{/*
The Secrets to create when they are missing, as a YAML list: id, name and data, in which every
$name becomes a random text; or namespace and `copy`, keys of the Secret of that name. Empty when
existing Secrets are named for all.
*/}}
{{- define "prefect-hamilton.secrets.wanted" -}}
{{- $postgresName := include "prefect-hamilton.postgres.name" . }}
{{- $postgresHost := include "prefect-hamilton.serviceHost" (dict "root" . "name" $postgresName) }}
{{- if and .Values.server.enabled (eq .Values.auth.type "basic") (not .Values.auth.existingSecret) }}
- id: AUTH
  name: {{ include "prefect-hamilton.auth.secretName" . | toYaml }}
  data:
    auth-string: prefect:$password
    username: prefect
    password: $password
{{- include "prefect-hamilton.secrets.copies" (dict
  "root" .
  "id" "AUTH"
  "name" (include "prefect-hamilton.auth.secretName" .)
  "key" "auth-string") }}
{{- end }}
{{- if and .Values.postgres.enabled (not .Values.postgres.existingSecret) }}
- id: POSTGRES
  name: {{ include "prefect-hamilton.postgres.secretName" . | toYaml }}
  data:
    postgres-password: $postgres
    {{ .Values.postgres.databases.prefect.key }}: $prefect
    {{ .Values.postgres.databases.hamilton.key }}: $hamilton
    warehouse-password: $warehouse
    warehouse-url: postgresql://warehouse:$warehouse@{{ $postgresHost }}:5432/warehouse
{{- include "prefect-hamilton.secrets.copies" (dict
  "root" .
  "id" "POSTGRES"
  "name" (include "prefect-hamilton.postgres.secretName" .)
  "key" "warehouse-url") }}
{{- end }}
{{- if and .Values.hamiltonUi.enabled (not .Values.hamiltonUi.existingSecret) }}
- id: HAMILTON_UI
  name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
  data:
    api-key: $api_key
    django-secret-key: $django_secret_key
{{- include "prefect-hamilton.secrets.copies" (dict
  "root" .
  "id" "HAMILTON_UI"
  "name" (include "prefect-hamilton.hamilton-ui.secretName" .)
  "key" "api-key") }}
{{- end }}
{{- if and .Values.valkey.enabled (not .Values.valkey.existingSecret) }}
- id: VALKEY
  name: {{ include "prefect-hamilton.valkey.secretName" . | toYaml }}
  data:
    password: $password
    {{ .Values.valkey.urlKey }}: redis://:$password@{{ include "prefect-hamilton.valkey.name" . }}:6379/0
{{- end }}
{{- end }}

{{/*
Entries that copy one key of a Secret into the namespaces of flow pods that need it: warehouse-url only where
they have no other warehouse. Takes root, id, name and key.
*/}}
{{- define "prefect-hamilton.secrets.copies" -}}
{{- $root := .root }}
{{- range $namespace, $pools := include "prefect-hamilton.flows.poolsByNamespace" .root | fromYaml }}
{{- $of := dict "root" $root "namespace" $namespace "pools" $pools }}
{{- $isNeeded := or (ne $.key "warehouse-url") (include "prefect-hamilton.flows.namespaceLoadsBundledWarehouse" $of) }}
{{- if and $isNeeded (ne $namespace $root.Release.Namespace) }}
{{- $isCommon := eq $namespace (include "prefect-hamilton.flows.namespace" $root) }}
- id: {{ $.id }}_COPY{{ $isCommon | ternary "" (printf "_%s" $namespace) | upper | replace "-" "_" }}
  name: {{ $.name | toYaml }}
  namespace: {{ $namespace | toYaml }}
  copy: [{{ $.key }}]
{{- end }}
{{- end }}
{{- end }}

{{/* Names of the Secrets that are copied into other namespaces, as a YAML list. */}}
{{- define "prefect-hamilton.secrets.copied" -}}
{{- $found := list }}
{{- range include "prefect-hamilton.secrets.wanted" . | fromYamlArray }}
{{- if .copy }}
{{- $found = append $found .name }}
{{- end }}
{{- end }}
{{- uniq $found | toYaml }}
{{- end }}

{{/* The namespaces in which the Job creates Secrets, as a YAML list: the release's, and those with copies. */}}
{{- define "prefect-hamilton.secrets.namespaces" -}}
{{- $found := list .Release.Namespace }}
{{- range include "prefect-hamilton.secrets.wanted" . | fromYamlArray }}
{{- $found = append $found .namespace }}
{{- end }}
{{- compact $found | uniq | toYaml }}
{{- end }}

{{- define "prefect-hamilton.secrets.isNeeded" -}}
{{- if and .Values.secrets.enabled (include "prefect-hamilton.secrets.wanted" . | trim) }}true{{ end }}
{{- end }}

{{/*
A volume of the keys that an environment takes from Secrets of the Job. It delays the pod until they exist: with
only variables, the kubelet retries after 10 s. Takes root and env.
*/}}
{{- define "prefect-hamilton.secrets.awaited" -}}
{{- $created := list }}
{{- if include "prefect-hamilton.secrets.isNeeded" .root }}
{{- range include "prefect-hamilton.secrets.wanted" .root | fromYamlArray }}
{{- $created = append $created .name }}
{{- end }}
{{- end }}
{{- $sources := list }}
{{- range $name, $value := fromYaml .env }}
{{- if kindIs "map" $value }}
{{- with $value.secretKeyRef }}
{{- if has .name $created }}
{{- $items := list (dict "key" .key "path" (printf "%s/%s" .name .key)) }}
{{- $sources = append $sources (dict "secret" (dict "name" .name "items" $items)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with $sources }}
- name: awaited-secrets
  projected:
    sources:
      {{- uniq . | toYaml | nindent 6 }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.secrets.env" -}}
{{- range include "prefect-hamilton.secrets.wanted" . | fromYamlArray }}
WANTED_SECRET_{{ .id }}: |-
  {{- omit . "id" | toYaml | nindent 2 }}
{{- end }}
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.secrets.jobSpec" -}}
{{- $s := include "prefect-hamilton.settings" (dict "root" . "own" .Values.secrets) | fromYaml }}
{{- $context := dict
  "root" .
  "component" "secrets"
  "settings" $s
  "image" .Values.server.image
  "serviceAccountName" (include "prefect-hamilton.secrets.name" .)
  "token" true -}}
backoffLimit: 10
template:
  metadata:
    {{- include "prefect-hamilton.podMetadata" $context | nindent 4 }}
  spec:
    {{- include "prefect-hamilton.pod" $context | nindent 4 }}
    restartPolicy: OnFailure
    {{- with $s.initContainers }}
    initContainers:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: secrets
        {{- include "prefect-hamilton.container" $context | nindent 8 }}
        args: [python, -P, -m, prefect_hamilton.server.create_secrets]
        {{- include "prefect-hamilton.env" (dict
          "own" (include "prefect-hamilton.secrets.env" .)
          "settings" $s) | nindent 8 }}
        resources:
          {{- toYaml $s.resources | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          {{- with $s.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: tmp
        emptyDir: {}
      {{- with $s.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
