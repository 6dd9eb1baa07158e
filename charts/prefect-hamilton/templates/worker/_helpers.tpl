{{- define "prefect-hamilton.hasWorkers" -}}
{{- if .Values.worker.enabled }}true{{ end }}
{{- end }}

{{/* The work pools: those of `workers`, or one. */}}
{{- define "prefect-hamilton.workPools" -}}
{{- if include "prefect-hamilton.hasWorkers" . }}
{{- .Values.workers | default (dict "kubernetes" dict) | toYaml }}
{{- end }}
{{- end }}

{{/* Part of a name made from a pool's: as it is where that is possible, marked where it is not. */}}
{{- define "prefect-hamilton.worker.slug" -}}
{{- $slug := regexReplaceAll "[^a-z0-9-]+" (lower .) "-" | trunc 14 | trimAll "-" }}
{{- eq $slug . | ternary $slug (printf "%s-%s" $slug (sha256sum . | trunc 4) | trimPrefix "-") }}
{{- end }}

{{/* Name of a pool's worker. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.name" -}}
{{- printf "%s-worker-%s" (include "prefect-hamilton.fullname" .root) (include "prefect-hamilton.worker.slug" .pool) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Settings of a pool's worker: `global`, `worker` and its own. Takes root and pool. */}}
{{- define "prefect-hamilton.worker.settings" -}}
{{- $own := omit (get (.root.Values.workers | default dict) .pool | default dict) "flows" "concurrencyLimit" | include "prefect-hamilton.withoutNulls" | fromYaml }}
{{- include "prefect-hamilton.settings" (dict "root" .root "own" (mergeOverwrite (deepCopy .root.Values.worker) (deepCopy $own))) }}
{{- end }}

{{/* Environment of a pool's worker. Takes root, pool and settings. */}}
{{- define "prefect-hamilton.worker.env" -}}
{{ include "prefect-hamilton.api.env" .root }}
PREFECT_HOME: /tmp/prefect
PREFECT_LOGGING_LEVEL: {{ .settings.logLevel | toYaml }}
PREFECT_WORKER_QUERY_SECONDS: {{ .settings.pollSeconds | toYaml }}
PREFECT_WORKER_PREFETCH_SECONDS: {{ .settings.prefetchSeconds | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES:
  {{- include "prefect-hamilton.flows.namespaceValue" .root | nindent 2 }}
{{- with .settings.clusterUid }}
PREFECT_INTEGRATIONS_KUBERNETES_CLUSTER_UID: {{ . | quote }}
{{- end }}
{{- if ne .root.Values.auth.type "none" }}
{{- $kind := eq .root.Values.auth.type "apiKey" | ternary "API_KEY" "API_AUTH_STRING" }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_NAME: {{ include "prefect-hamilton.auth.secretName" .root | toYaml }}
PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{{ $kind }}_SECRET_KEY: {{ include "prefect-hamilton.auth.key" .root | toYaml }}
{{- end }}
{{- end }}
