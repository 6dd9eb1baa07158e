{{/*
What settings of a pool's flow pods set that Pod Security `restricted` forbids, as a list of sentences. The
worker checks the whole pod again, with the job variables. Takes root and pool.
*/}}
{{- define "prefect-hamilton.flows.mistakes" -}}
{{- $s := include "prefect-hamilton.flows.settings" . | fromYaml }}
{{- $found := list }}
{{- if eq $s.podSecurity "restricted" }}
{{- $own := dict
  "volumes" $s.volumes
  "initContainers" (concat ($s.initContainers | default list) ($s.sidecars | default list))
  "containers" (list (dict "name" "prefect-job" "securityContext" $s.securityContext))
  "securityContext" $s.podSecurityContext }}
{{- $patch := ($s.podTemplate | default dict).spec | default dict }}
{{- range $where, $spec := dict "settings" $own "podTemplate" $patch }}
{{- range include "prefect-hamilton.flows.violations" $spec | fromYamlArray }}
{{- $found = append $found (printf
  "The %s of the flow pods of %s: %s, which Pod Security restricted forbids: remove it, or set flows.podSecurity to privileged."
  $where $.pool .) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* What excludes another setting of a pool's flow pods, as a list of sentences. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.conflicts" -}}
{{- $s := include "prefect-hamilton.flows.settings" . | fromYaml }}
{{- $found := list }}
{{- if and $s.storeEnvAsSecret (int ($s.standby | default dict).count) }}
{{- $found = append $found (printf
  "The work pool %s has flows.storeEnvAsSecret and standby pods, which start before there is a flow run: %s."
  .pool (printf "set flows.storeEnvAsSecret to false or flows.standby.count to 0, also in workers.%s.flows" .pool)) }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* What is wrong with a pool's project in the Hamilton UI, as a list of sentences. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.projectMistakes" -}}
{{- $own := (get (.root.Values.workers | default dict) .pool | default dict).hamiltonUi | default dict }}
{{- $found := list }}
{{- if and $own.project (not .root.Values.hamiltonUi.enabled) }}
{{- $found = append $found (printf
  "workers.%s.hamiltonUi.project needs hamiltonUi.enabled: this release has no Hamilton UI." .pool) }}
{{- end }}
{{- if and $own.users (not $own.project) }}
{{- $found = append $found (printf
  "workers.%s.hamiltonUi.users are users of the pool's own project: set workers.%s.hamiltonUi.project." .pool .pool) }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/*
What contradicts itself in the place of results, as a list of sentences. Takes root, where: the name of the
value, own: what it sets, and results: what then holds.
*/}}
{{- define "prefect-hamilton.flows.resultsMistakes" -}}
{{- $found := list }}
{{- if and .own.bucket .own.existingClaim }}
{{- $found = append $found (printf
  "%s.bucket and %s.existingClaim both name a place for results: set only one of them." .where .where) }}
{{- end }}
{{- if and .own.bucket (not .root.Values.bootstrap.enabled) }}
{{- $found = append $found (printf
  "%s.bucket is stored in a block by the bootstrap: set bootstrap.enabled." .where) }}
{{- end }}
{{- if and .own.existingSecret (not .results.bucket) }}
{{- $found = append $found (printf
  "%s.existingSecret is the credential of a bucket: set %s.bucket." .where .where) }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* What a part of a pod's spec sets against `restricted`, as a list. A field that it lacks is no mistake. */}}
{{- define "prefect-hamilton.flows.violations" -}}
{{- $found := list }}
{{- range list "hostNetwork" "hostPID" "hostIPC" }}
{{- if get $ . }}
{{- $found = append $found (printf "%s is true" .) }}
{{- end }}
{{- end }}
{{- $allowed := list
  "name" "configMap" "csi" "downwardAPI" "emptyDir" "ephemeral" "persistentVolumeClaim" "projected" "secret" }}
{{- range $volume := .volumes }}
{{- range $kind := keys $volume | sortAlpha }}
{{- if not (has $kind $allowed) }}
{{- $found = append $found (printf "volume %s is of type %s" $volume.name $kind) }}
{{- end }}
{{- end }}
{{- end }}
{{- $contexts := list (dict "name" "the pod" "securityContext" .securityContext) }}
{{- range concat ($contexts) (.initContainers | default list) (.containers | default list) }}
{{- $name := .name }}
{{- $context := .securityContext | default dict }}
{{- if $context.privileged }}
{{- $found = append $found (printf "%s is privileged" $name) }}
{{- end }}
{{- if $context.allowPrivilegeEscalation }}
{{- $found = append $found (printf "%s sets allowPrivilegeEscalation" $name) }}
{{- end }}
{{- $capabilities := $context.capabilities | default dict }}
{{- if and (hasKey $capabilities "drop") (not (has "ALL" ($capabilities.drop | default list))) }}
{{- $found = append $found (printf "%s does not drop ALL capabilities" $name) }}
{{- end }}
{{- range $capabilities.add }}
{{- if ne . "NET_BIND_SERVICE" }}
{{- $found = append $found (printf "%s adds the capability %s" $name .) }}
{{- end }}
{{- end }}
{{- if and (hasKey $context "runAsUser") (eq (toString $context.runAsUser) "0") }}
{{- $found = append $found (printf "%s runs as user 0" $name) }}
{{- end }}
{{- if and (hasKey $context "runAsNonRoot") (eq (toString $context.runAsNonRoot) "false") }}
{{- $found = append $found (printf "%s sets runAsNonRoot to false" $name) }}
{{- end }}
{{- if eq (($context.seccompProfile | default dict).type | default "") "Unconfined" }}
{{- $found = append $found (printf "%s has the seccompProfile Unconfined" $name) }}
{{- end }}
{{- range .ports }}
{{- if .hostPort }}
{{- $found = append $found (printf "%s has a hostPort" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}
