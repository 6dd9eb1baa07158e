{{/* The namespace of the flow pods of pools that have none of their own. */}}
{{- define "prefect-hamilton.flows.namespace" -}}
{{- .Values.flows.namespace | default .Release.Namespace }}
{{- end }}

{{/* The namespace of a pool's flow pods. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.namespaceOf" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- ($pool.flows | default dict).namespace | default (include "prefect-hamilton.flows.namespace" .root) }}
{{- end }}

{{/* Something if the flow pods of a pool are not where those of other pools are. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.isApart" -}}
{{- $common := include "prefect-hamilton.flows.namespace" .root }}
{{- if ne (include "prefect-hamilton.flows.namespaceOf" .) $common }}true{{ end }}
{{- end }}

{{/* The work pools by the namespace of their flow pods; without workers, the common namespace with none. */}}
{{- define "prefect-hamilton.flows.poolsByNamespace" -}}
{{- $found := dict }}
{{- range $pool, $_ := include "prefect-hamilton.workPools" . | fromYaml }}
{{- $namespace := include "prefect-hamilton.flows.namespaceOf" (dict "root" $ "pool" $pool) }}
{{- $_ := set $found $namespace (append (get $found $namespace | default list) $pool) }}
{{- end }}
{{- $found | default (dict (include "prefect-hamilton.flows.namespace" .) list) | toYaml }}
{{- end }}

{{/*
A pool's namespace as the value of a variable. Only metadata names the release's own namespace, so that
Kustomize can set it. Takes root and namespace.
*/}}
{{- define "prefect-hamilton.flows.namespaceValue" -}}
{{- if eq .namespace .root.Release.Namespace -}}
fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
{{- else -}}
{{ .namespace | quote }}
{{- end }}
{{- end }}

{{/* The variable of the bootstrap that holds the namespace of a pool's flow pods. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.namespaceVariable" -}}
{{- $suffix := include "prefect-hamilton.worker.slug" .pool | upper | replace "-" "_" }}
{{- $isCommon := include "prefect-hamilton.flows.isApart" . | empty }}
{{- $isCommon | ternary "FLOWS_NAMESPACE" (printf "FLOWS_NAMESPACE_%s" $suffix) }}
{{- end }}

{{/* The variable of the bootstrap that holds the image of a pool's flow pods. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.imageVariable" -}}
{{- $own := (get (.root.Values.workers | default dict) .pool | default dict).flows | default dict }}
{{- $suffix := include "prefect-hamilton.worker.slug" .pool | upper | replace "-" "_" }}
{{- empty $own.image | ternary "FLOWS_IMAGE" (printf "FLOWS_IMAGE_%s" $suffix) }}
{{- end }}

{{/* Git URL that flow pods clone: flows.repository, or the bundled development server. */}}
{{- define "prefect-hamilton.flows.repository" -}}
{{- if .Values.gitServer.enabled }}
{{- $name := include "prefect-hamilton.git-server.name" . }}
{{- printf "git://%s/flows.git" (include "prefect-hamilton.serviceHost" (dict "root" . "name" $name)) }}
{{- else }}
{{- .Values.flows.repository | default "" }}
{{- end }}
{{- end }}

{{/* Something if a repository is registered. */}}
{{- define "prefect-hamilton.flows.isRegistered" -}}
{{- if or (include "prefect-hamilton.flows.repository" .) .Values.flows.repositories }}true{{ end }}
{{- end }}

{{/* The work pools that a repository may use, as a list. Takes root and repository. */}}
{{- define "prefect-hamilton.flows.poolsOf" -}}
{{- $all := keys (include "prefect-hamilton.workPools" .root | fromYaml) | sortAlpha }}
{{- .repository.pools | default $all | toYaml }}
{{- end }}

{{/* The Secret with the SSH key of a pool's repository, if one has a key. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.sshSecret" -}}
{{- $root := .root }}
{{- $pool := .pool }}
{{- $secrets := list }}
{{- $single := $root.Values.flows.gitCredential }}
{{- if and (eq $single.type "ssh") $single.existingSecret }}
{{- $secrets = append $secrets $single.existingSecret }}
{{- end }}
{{- range $root.Values.flows.repositories }}
{{- $credential := .gitCredential | default dict }}
{{- $pools := include "prefect-hamilton.flows.poolsOf" (dict "root" $root "repository" .) | fromYamlArray }}
{{- if and (eq ($credential.type | default "token") "ssh") $credential.existingSecret (has $pool $pools) }}
{{- $secrets = append $secrets $credential.existingSecret }}
{{- end }}
{{- end }}
{{- $secrets | first | default "" }}
{{- end }}

{{/* Name of the ServiceAccount of a pool's flow pods. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.serviceAccountName" -}}
{{- include "prefect-hamilton.serviceAccountName" (dict
  "root" .root
  "account" (include "prefect-hamilton.flows.serviceAccount" . | fromYaml)
  "component" "flows") }}
{{- end }}

{{/* Settings of that ServiceAccount: those of `flows` and the pool's own. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.serviceAccount" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- $own := ($pool.flows | default dict).serviceAccount | default dict }}
{{- mergeOverwrite (deepCopy .root.Values.flows.serviceAccount) (deepCopy $own) | toYaml }}
{{- end }}

{{/*
Something if a pool's flow pods load into the bundled PostgreSQL: they have no other WAREHOUSE_URL. Takes
root and pool.
*/}}
{{- define "prefect-hamilton.flows.loadsBundledWarehouse" -}}
{{- $s := include "prefect-hamilton.flows.settings" . | fromYaml }}
{{- $hasOther := hasKey ($s.env | default dict) "WAREHOUSE_URL" }}
{{- if and (include "prefect-hamilton.warehouse.isBundled" .root) (not $hasOther) }}true{{ end }}
{{- end }}

{{/*
Something if flow pods in a namespace load into the bundled PostgreSQL. Those of the common namespace may
always. Takes root, namespace and pools.
*/}}
{{- define "prefect-hamilton.flows.namespaceLoadsBundledWarehouse" -}}
{{- $root := .root }}
{{- $found := list }}
{{- if eq .namespace (include "prefect-hamilton.flows.namespace" $root) }}
{{- $found = append $found (include "prefect-hamilton.warehouse.isBundled" $root) }}
{{- end }}
{{- range .pools }}
{{- $found = append $found (include "prefect-hamilton.flows.loadsBundledWarehouse" (dict "root" $root "pool" .)) }}
{{- end }}
{{- compact $found | first | default "" }}
{{- end }}

{{/* Settings of a pool's flow pods: `flows` and the pool's own. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.settings" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- $own := $pool.flows | default dict | include "prefect-hamilton.withoutNulls" | fromYaml }}
{{- $shared := pick .root.Values.global
  "nodeSelector" "tolerations" "runtimeClassName" "schedulerName" "hostAliases" "dnsPolicy" "dnsConfig" }}
{{- $flows := .root.Values.flows }}
{{- range $key, $value := $shared }}
{{- if not (get $flows $key) }}
{{- $flows = merge (dict $key $value) $flows }}
{{- end }}
{{- end }}
{{- $settings := include "prefect-hamilton.overlaid" (dict "base" $flows "own" $own) | fromYaml }}
{{- include "prefect-hamilton.company.settings" (dict "root" .root "settings" $settings) }}
{{- end }}

{{/* Environment of a pool's flow pods, by name. `flows.env` is merged over it. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.env" -}}
{{- with include "prefect-hamilton.warehouse.secretName" .root }}
WAREHOUSE_URL:
  secretKeyRef:
    name: {{ . | toYaml }}
    key: {{ include "prefect-hamilton.warehouse.key" $.root | toYaml }}
{{- end }}
{{- if .root.Values.hamiltonUi.enabled }}
HAMILTON_API_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" .root | toYaml }}
    key: api-key
{{- end }}
{{- if include "prefect-hamilton.flows.sshSecret" . }}
GIT_SSH_COMMAND: {{ include "prefect-hamilton.flows.sshCommand" "/git-credential" }}
{{- end }}
{{- if eq .root.Values.logs.format "json" }}
PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER: json
PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER: json
{{- end }}
{{- with .root.Values.telemetry.otlp.endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | toYaml }}
POD_NAME:
  fieldRef: {fieldPath: metadata.name}
POD_NAMESPACE:
  fieldRef: {fieldPath: metadata.namespace}
POD_DEPLOYMENT_NAME:
  fieldRef: {fieldPath: "metadata.labels['prefect.io/deployment-name']"}
POD_FLOW_NAME:
  fieldRef: {fieldPath: "metadata.labels['prefect.io/flow-name']"}
PREFECT_HAMILTON_TRACE_RESOURCE: {{ list
  "k8s.pod.name=$(POD_NAME)"
  "k8s.namespace.name=$(POD_NAMESPACE)"
  "prefect.deployment.name=$(POD_DEPLOYMENT_NAME)"
  "prefect.flow.name=$(POD_FLOW_NAME)"
  (printf "prefect.work-pool.name=%s" (urlquery $.pool)) | join "&" | toYaml }}
{{- end }}
PREFECT_HOME: /tmp/prefect
{{- $results := include "prefect-hamilton.flows.results" . | fromYaml }}
{{- if $results.bucket }}
PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK: remote-file-system/{{ include "prefect-hamilton.flows.resultsBlock" . }}
{{- else if $results.existingClaim }}
PREFECT_RESULTS_LOCAL_STORAGE_PATH: /results
{{- end }}
{{- end }}

{{/* The place of a pool's results: that of `flows` unless the pool names another one. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.results" -}}
{{- $own := include "prefect-hamilton.flows.ownResults" . | fromYaml }}
{{- $results := mergeOverwrite (deepCopy .root.Values.flows.results) $own }}
{{- if $own.existingClaim }}
{{- $results = omit $results "bucket" }}
{{- else if $own.bucket }}
{{- $results = omit $results "existingClaim" }}
{{- end }}
{{- /* The credential of a bucket that the pool does not use. */}}
{{- empty $results.bucket | ternary (omit $results "existingSecret") $results | toYaml }}
{{- end }}

{{/* What a pool itself sets of it. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.ownResults" -}}
{{- $pool := get (.root.Values.workers | default dict) .pool | default dict }}
{{- ($pool.flows | default dict).results | default dict | include "prefect-hamilton.withoutNulls" }}
{{- end }}

{{/* The block with the bucket of a pool's results, which has no credential. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.resultsBlock" -}}
{{- $name := printf "%s-results" (include "prefect-hamilton.fullname" .root) }}
{{- $bucket := (include "prefect-hamilton.flows.results" . | fromYaml).bucket }}
{{- $isCommon := eq $bucket .root.Values.flows.results.bucket }}
{{- $isCommon | ternary $name (printf "%s-%s" $name (include "prefect-hamilton.worker.slug" .pool)) }}
{{- end }}

{{/* The buckets of all pools by the name of their block. */}}
{{- define "prefect-hamilton.flows.resultsBlocks" -}}
{{- $found := dict }}
{{- with .Values.flows.results.bucket }}
{{- $_ := set $found (printf "%s-results" (include "prefect-hamilton.fullname" $)) . }}
{{- end }}
{{- range $pool, $_ := include "prefect-hamilton.workPools" . | fromYaml }}
{{- $of := dict "root" $ "pool" $pool }}
{{- with (include "prefect-hamilton.flows.results" $of | fromYaml).bucket }}
{{- $_ := set $found (include "prefect-hamilton.flows.resultsBlock" $of) . }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* Takes the folder with the key. */}}
{{- define "prefect-hamilton.flows.sshCommand" -}}
git-ssh -i {{ . }}/ssh-privatekey -o IdentitiesOnly=yes -o UserKnownHostsFile={{ . }}/known_hosts
{{- end }}
