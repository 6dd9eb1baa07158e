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

{{/* Name of a pool's worker. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.name" -}}
{{- $slug := include "prefect-hamilton.worker.slug" .pool }}
{{- printf "%s-worker-%s" (include "prefect-hamilton.fullname" .root) $slug | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name under which all pods of a pool's worker are one worker in Prefect. It identifies a worker by its
name and pool and never removes one, so a name per pod would leave an offline worker for each pod that has
ended, killed or not. Nothing depends on telling the pods apart: each heartbeat renews the same entry, each
connection has an id of its own, and every state that a worker proposes names the state that it has seen.
Takes root, pool and settings.
*/}}
{{- define "prefect-hamilton.worker.identity" -}}
{{- $name := include "prefect-hamilton.worker.name" . }}
{{- with .settings.clusterUid }}
{{- $name = printf "%s-%s" $name (regexReplaceAll "[/%]" . "-") }}
{{- end }}
{{- $name }}
{{- end }}

{{/* Settings of a pool's worker: `global`, `worker` and its own. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.settings" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- $own := omit $pool "flows" "concurrencyLimit" | include "prefect-hamilton.withoutNulls" | fromYaml }}
{{- $merged := mergeOverwrite (deepCopy .root.Values.worker) (deepCopy $own) }}
{{- include "prefect-hamilton.settings" (dict "root" .root "own" $merged) }}
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
PREFECT_WORKER_QUERY_SECONDS: {{ .settings.pollSeconds | toYaml }}
PREFECT_WORKER_PREFETCH_SECONDS: {{ .settings.prefetchSeconds | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES:
  {{- include "prefect-hamilton.flows.namespaceValue" .root | nindent 2 }}
{{- with .settings.skipLateAfter }}
PREFECT_HAMILTON_WORKER_SKIP_LATE_AFTER: {{ int64 . }}
{{- end }}
PREFECT_HAMILTON_POD_SECURITY: {{ (include "prefect-hamilton.flows.settings" . | fromYaml).podSecurity }}
PREFECT_HAMILTON_SERVICE_ACCOUNTS: {{ include "prefect-hamilton.flows.serviceAccounts" . | quote }}
{{- with .settings.clusterUid }}
PREFECT_INTEGRATIONS_KUBERNETES_CLUSTER_UID: {{ . | quote }}
{{- end }}
{{- if ne .root.Values.auth.type "none" }}
{{- $kind := eq .root.Values.auth.type "apiKey" | ternary "API_KEY" "API_AUTH_STRING" }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_NAME: {{ include "prefect-hamilton.auth.secretName" .root | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_KEY: {{ include "prefect-hamilton.auth.key" .root | toYaml }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.worker.serviceAccountName" -}}
{{- include "prefect-hamilton.serviceAccountName" (dict
  "root" .
  "account" .Values.worker.serviceAccount
  "component" "worker") }}
{{- end }}
