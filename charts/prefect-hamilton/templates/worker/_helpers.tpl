{{- define "prefect-hamilton.hasWorkers" -}}
{{- if .Values.worker.enabled }}true{{ end }}
{{- end }}

{{/* The work pools, by name: those of `workers`, or one named `kubernetes`. */}}
{{- define "prefect-hamilton.workPools" -}}
{{- if include "prefect-hamilton.hasWorkers" . }}
{{- .Values.workers | default (dict "kubernetes" dict) | toYaml }}
{{- end }}
{{- end }}

{{/*
A pool's name as a part of names in Kubernetes. One that had to be changed ends with a hash, so that two
pools do not give the same part.
*/}}
{{- define "prefect-hamilton.worker.slug" -}}
{{- $slug := regexReplaceAll "[^a-z0-9-]+" (lower .) "-" | trunc 14 | trimAll "-" }}
{{- eq $slug . | ternary $slug (printf "%s-%s" $slug (sha256sum . | trunc 4) | trimPrefix "-") }}
{{- end }}

{{/* Name of a pool's worker: at most 63 characters, with the whole part of the pool. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.name" -}}
{{- $slug := include "prefect-hamilton.worker.slug" .pool }}
{{- $release := include "prefect-hamilton.fullname" .root | trunc (int (sub 55 (len $slug))) | trimSuffix "-" }}
{{- printf "%s-worker-%s" $release $slug }}
{{- end }}

{{/*
The name under which all pods of a pool's worker are one worker in Prefect. It identifies a worker by its
name and pool and never removes one, so a name per pod would leave an offline worker for each pod that has
ended, killed or not. Prefect does not need to tell the pods apart: each heartbeat renews the same entry, each
connection has its own id, and every state that a worker proposes names the state that it has seen.
Takes root, pool and settings.
*/}}
{{- define "prefect-hamilton.worker.identity" -}}
{{- $name := include "prefect-hamilton.worker.name" . }}
{{- with .settings.clusterUid }}
{{- $name = printf "%s-%s" $name (regexReplaceAll "[/%]" . "-") }}
{{- end }}
{{- $name }}
{{- end }}

{{/* Name of what all workers share. */}}
{{- define "prefect-hamilton.worker.commonName" -}}
{{ include "prefect-hamilton.fullname" . }}-worker
{{- end }}

{{/* Settings of a pool's worker: `global`, `worker` and its own. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.settings" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- $own := omit $pool "flows" "concurrencyLimit" "hamiltonUi" "networkPolicy" | include "prefect-hamilton.withoutNulls" | fromYaml }}
{{- $merged := include "prefect-hamilton.overlaid" (dict "base" .root.Values.worker "own" $own) | fromYaml }}
{{- include "prefect-hamilton.settings" (dict "root" .root "own" $merged) }}
{{- end }}

{{/* Settings of a pool's standby pods; nothing if it has none. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.standby" -}}
{{- $standby := (include "prefect-hamilton.flows.settings" . | fromYaml).standby | default dict }}
{{- if int $standby.count }}
{{- toYaml $standby }}
{{- end }}
{{- end }}

{{/* Something if the environment of a pool's flow runs is in Secrets. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.storesEnvAsSecret" -}}
{{- if (include "prefect-hamilton.flows.settings" . | fromYaml).storeEnvAsSecret }}true{{ end }}
{{- end }}

{{/* Something if a template that takes root and pool gives something for one of the pools. Takes root, pools and template. */}}
{{- define "prefect-hamilton.worker.any" -}}
{{- range .pools }}
{{- if include $.template (dict "root" $.root "pool" .) }}true{{ end }}
{{- end }}
{{- end }}

{{/* Environment of a pool's worker. Takes root, pool and settings. */}}
{{- define "prefect-hamilton.worker.env" -}}
{{ include "prefect-hamilton.api.env" .root }}
PREFECT_HOME: /tmp/prefect
PREFECT_LOGGING_LEVEL: {{ .settings.logLevel | toYaml }}
{{- with include "prefect-hamilton.logs.env" .root }}
{{ . }}
{{- end }}
{{- if .root.Values.server.enabled }}
{{- /* The worker hands both on to flow pods: without them, a flow run sends a quarter fewer requests. */}}
PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: {{ include "prefect-hamilton.server.wantsCsrfTokens" .root | eq "true" }}
PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: false
{{- end }}
{{- if .root.Values.metrics.enabled }}
PREFECT_HAMILTON_WORKER_METRICS_PORT: 9090
{{- end }}
PREFECT_WORKER_QUERY_SECONDS: {{ .settings.pollSeconds | toYaml }}
PREFECT_WORKER_PREFETCH_SECONDS: {{ .settings.prefetchSeconds | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES:
  {{- include "prefect-hamilton.flows.namespaceValue" (dict
    "root" .root
    "namespace" (include "prefect-hamilton.flows.namespaceOf" .)) | nindent 2 }}
{{- with .settings.skipLateAfter }}
PREFECT_HAMILTON_WORKER_SKIP_LATE_AFTER: {{ int64 . }}
{{- end }}
{{- if include "prefect-hamilton.worker.storesEnvAsSecret" . }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_STORE_ENV_AS_SECRET: true
{{- end }}
PREFECT_HAMILTON_POD_SECURITY: {{ (include "prefect-hamilton.flows.settings" . | fromYaml).podSecurity }}
PREFECT_HAMILTON_SERVICE_ACCOUNTS: {{ include "prefect-hamilton.flows.serviceAccounts" . | quote }}
{{- $isBesideFlowPods := eq (include "prefect-hamilton.flows.namespaceOf" (dict "root" .root "pool" .pool)) .root.Release.Namespace }}
{{- if $isBesideFlowPods }}
PREFECT_HAMILTON_WORKER_POD_NAME:
  fieldRef: {fieldPath: metadata.name}
{{- end }}
{{- with include "prefect-hamilton.worker.standby" . | fromYaml }}
PREFECT_HAMILTON_STANDBY_COUNT: {{ int .count }}
PREFECT_HAMILTON_STANDBY_MAX_AGE_SECONDS: {{ int .maxAgeSeconds }}
{{- with .preload }}
PREFECT_HAMILTON_STANDBY_PRELOAD: {{ join "," . | quote }}
{{- end }}
{{- if $isBesideFlowPods }}
PREFECT_HAMILTON_WORKER_POD_UID:
  fieldRef: {fieldPath: metadata.uid}
{{- end }}
{{- end }}
{{- with .settings.clusterUid }}
PREFECT_INTEGRATIONS_KUBERNETES_CLUSTER_UID: {{ . | quote }}
{{- end }}
{{- if ne .root.Values.auth.type "none" }}
{{- $kind := eq .root.Values.auth.type "apiKey" | ternary "API_KEY" "API_AUTH_STRING" }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_NAME: {{ include "prefect-hamilton.auth.secretName" .root | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_KEY: {{ include "prefect-hamilton.auth.key" .root | toYaml }}
{{- end }}
{{- end }}

{{/*
Name of the ServiceAccount of a pool's worker. A worker whose flow pods have a namespace of their own gets its
own, so that it has no rights in other namespaces. Takes root and pool.
*/}}
{{- define "prefect-hamilton.worker.serviceAccountName" -}}
{{- $slug := include "prefect-hamilton.worker.slug" .pool }}
{{- $isCommon := include "prefect-hamilton.flows.isApart" . | empty }}
{{- include "prefect-hamilton.serviceAccountName" (dict
  "root" .root
  "account" .root.Values.worker.serviceAccount
  "component" ($isCommon | ternary "worker" (printf "worker-%s" $slug))) }}
{{- end }}

{{/* Names of the ServiceAccounts of the workers of some pools, as a list. Takes root and pools. */}}
{{- define "prefect-hamilton.worker.serviceAccountNames" -}}
{{- $root := .root }}
{{- $found := list }}
{{- range .pools }}
{{- $found = append $found (include "prefect-hamilton.worker.serviceAccountName" (dict "root" $root "pool" .)) }}
{{- end }}
{{- uniq $found | toYaml }}
{{- end }}
