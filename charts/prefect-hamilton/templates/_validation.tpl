{{/*
Mistakes that the schema cannot find, each reported in one sentence. Included by validation.yaml.
*/}}
{{- define "prefect-hamilton.validate" -}}
{{- $v := .Values }}
{{- $mistakes := list }}

{{- if and $v.global.proxy.existingSecret (or $v.global.proxy.http $v.global.proxy.https) }}
{{- $mistakes = append $mistakes
  "global.proxy.existingSecret contains the URLs of the proxy: remove global.proxy.http and global.proxy.https." }}
{{- end }}
{{- if and $v.global.caBundle.configMap $v.global.caBundle.secret }}
{{- $mistakes = append $mistakes
  "global.caBundle.configMap and global.caBundle.secret are both set: remove one of them." }}
{{- end }}

{{- range $where, $section := $v }}
{{- if and (kindIs "map" $section) (not (has $where (list "flows" "worker" "workers"))) }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.podMistakes" (dict
  "what" $where "where" $where "settings" $section) | fromYamlArray) }}
{{- end }}
{{- end }}
{{- $thirdParty := dict "postgres" $v.postgres "valkey" $v.valkey }}
{{- range $name, $exporter := $v.monitoring }}
{{- $where := printf "monitoring.%s" $name }}
{{- $_ := set $thirdParty $where $exporter }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.podMistakes" (dict
  "what" $where "where" $where "settings" $exporter) | fromYamlArray) }}
{{- end }}
{{- range $where, $section := $thirdParty }}
{{- if and $section.enabled (not (or $section.image.tag $section.image.digest)) }}
{{- $mistakes = append $mistakes (printf
  "%s.image.tag is empty, and the version of the chart is none of %s: set the tag or the digest."
  $where $section.image.repository) }}
{{- end }}
{{- end }}

{{- if and $v.auth.key (not $v.auth.existingSecret) }}
{{- $mistakes = append $mistakes
  "auth.key is a key of auth.existingSecret, which is not set: set it, or remove auth.key." }}
{{- end }}
{{- if and (include "prefect-hamilton.hasWorkers" .) $v.rbac.create }}
{{- if not (or $v.worker.serviceAccount.create $v.worker.serviceAccount.name) }}
{{- $mistakes = append $mistakes (cat
  "worker.serviceAccount.create is false, and every pod with the ServiceAccount default could create Jobs:"
  "name another one in worker.serviceAccount.name, or set rbac.create to false.") }}
{{- end }}
{{- end }}
{{- if $v.server.enabled }}
{{- if $v.api.url }}
{{- $mistakes = append $mistakes
  "api.url names an external Prefect API, but server.enabled is true: set only one of them." }}
{{- end }}
{{- if eq $v.auth.type "apiKey" }}
{{- $mistakes = append $mistakes (cat
  "auth.type: apiKey is for Prefect Cloud (server.enabled: false with api.url): set auth.type to basic"
  "or none for the release's own server.") }}
{{- end }}
{{- if $v.server.sqlite.enabled }}
{{- if include "prefect-hamilton.server.isSplit" . }}
{{- $mistakes = append $mistakes (cat
  "server.sqlite.enabled allows one server replica with its background services: set server.replicas to"
  "1, no autoscaling and backgroundServices.separate to false, or use PostgreSQL.") }}
{{- end }}
{{- end }}
{{- if and (include "prefect-hamilton.server.isSplit" .) (not (include "prefect-hamilton.valkey.isUsed" .)) }}
{{- $mistakes = append $mistakes (cat
  "Several server pods talk to each other through Valkey: set valkey.enabled, or valkey.existingSecret"
  "with the URL of an external one.") }}
{{- end }}
{{- if and (gt (int $v.backgroundServices.replicas) 1) (not (include "prefect-hamilton.server.isSplit" .)) }}
{{- $mistakes = append $mistakes (printf (cat
  "backgroundServices.replicas is %v, but they run in the server's pod: set backgroundServices.separate"
  "to true.") $v.backgroundServices.replicas) }}
{{- end }}
{{- else }}
{{- if and (include "prefect-hamilton.hasWorkers" .) (not $v.api.url) }}
{{- $mistakes = append $mistakes
  "server.enabled is false: set api.url to the Prefect API that the workers use." }}
{{- end }}
{{- if and (include "prefect-hamilton.hasWorkers" .) (ne $v.auth.type "none") (not $v.auth.existingSecret) }}
{{- $mistakes = append $mistakes (printf
  "auth.type is %s: set auth.existingSecret to the Secret with the credential for api.url." $v.auth.type) }}
{{- end }}
{{- $needServer := dict
  "valkey.enabled" $v.valkey.enabled
  "server.metrics with serviceMonitor.enabled" (and $v.serviceMonitor.enabled $v.server.metrics)
  "server.autoscaling.enabled" $v.server.autoscaling.enabled }}
{{- range $what, $isOn := $needServer }}
{{- if $isOn }}
{{- $mistakes = append $mistakes (printf
  "%s needs server.enabled: there is no server in this release." $what) }}
{{- end }}
{{- end }}
{{- end }}

{{- if and $v.metrics.enabled (not (or $v.server.enabled $v.api.url)) }}
{{- $mistakes = append $mistakes
  "metrics.enabled needs server.enabled, or api.url with the Prefect API to read." }}
{{- end }}

{{- if not (or $v.server.enabled (include "prefect-hamilton.hasWorkers" .) $v.hamiltonUi.enabled) }}
{{- $mistakes = append $mistakes
  "Nothing is left to install: server.enabled, worker.enabled and hamiltonUi.enabled are false." }}
{{- end }}

{{- if include "prefect-hamilton.postgres.isUsed" . }}
{{- if and $v.postgres.enabled $v.postgres.host }}
{{- $mistakes = append $mistakes
  "postgres.host names an external PostgreSQL, but postgres.enabled is true: set only one of them." }}
{{- end }}
{{- if not (or $v.postgres.enabled $v.postgres.host) }}
{{- $mistakes = append $mistakes (cat
  "PostgreSQL is required: set postgres.enabled, or postgres.host for an external one. (Only"
  "server.sqlite.enabled with hamiltonUi.enabled: false does without.)") }}
{{- end }}
{{- if and $v.postgres.host (not $v.postgres.existingSecret) }}
{{- $mistakes = append $mistakes
  "postgres.host is set: set postgres.existingSecret to the Secret with the users' passwords." }}
{{- end }}
{{- end }}
{{- if and $v.postgres.tls.caSecret (not $v.postgres.tls.enabled) }}
{{- $mistakes = append $mistakes "postgres.tls.caSecret is set, but postgres.tls.enabled is false." }}
{{- end }}
{{- if and $v.postgres.tls.enabled $v.postgres.enabled }}
{{- $mistakes = append $mistakes (cat
  "postgres.tls is for an external PostgreSQL; the bundled one has no certificate: set"
  "postgres.tls.enabled to false.") }}
{{- end }}

{{- if and (gt (int $v.hamiltonUi.replicas) 1) (not $v.hamiltonUi.s3.bucket) }}
{{- $mistakes = append $mistakes
  "hamiltonUi.replicas above 1 needs hamiltonUi.s3.bucket: a volume can be mounted by one pod only." }}
{{- end }}

{{- if not $v.secrets.enabled }}
{{- range include "prefect-hamilton.secrets.wanted" . | fromYamlArray }}
{{- if .data }}
{{- $mistakes = append $mistakes (printf
  "secrets.enabled is false: name the Secret that replaces %s (an existingSecret)." .name) }}
{{- end }}
{{- end }}
{{- end }}

{{- range $what, $isOn := dict "ingress" $v.ingress.enabled "gateway" $v.gateway.enabled }}
{{- if $isOn }}
{{- if and $v.server.enabled (not $v.server.host) }}
{{- $mistakes = append $mistakes (printf
  "%s.enabled needs server.host: the host name of the Prefect UI." $what) }}
{{- end }}
{{- if and $v.hamiltonUi.enabled (not $v.hamiltonUi.host) }}
{{- $mistakes = append $mistakes (printf
  "%s.enabled needs hamiltonUi.host: the Hamilton UI cannot share a host." $what) }}
{{- end }}
{{- if not (or $v.server.enabled $v.hamiltonUi.enabled) }}
{{- $mistakes = append $mistakes (printf
  "%s.enabled, but this release runs neither the Prefect UI nor the Hamilton UI." $what) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $v.server.host (eq $v.server.host $v.hamiltonUi.host) }}
{{- $mistakes = append $mistakes
  "server.host and hamiltonUi.host must differ: the Hamilton UI cannot share a host." }}
{{- end }}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) }}
{{- $mistakes = append $mistakes
  "gateway.enabled needs gateway.parentRefs: the Gateways to which the routes attach." }}
{{- end }}
{{- $exporters := or (include "prefect-hamilton.postgres.hasExporter" .) (include "prefect-hamilton.valkey.hasExporter" .) }}
{{- $hasUiMetrics := and $v.hamiltonUi.enabled $v.hamiltonUi.metrics }}
{{- if and $v.serviceMonitor.enabled (not (or $v.server.metrics $v.metrics.enabled $hasUiMetrics $exporters)) }}
{{- $mistakes = append $mistakes (cat
  "serviceMonitor.enabled needs metrics.enabled, server.metrics, hamiltonUi.metrics or an exporter of"
  "monitoring: there is nothing to scrape otherwise.") }}
{{- end }}
{{- if and $v.dashboards.enabled (not $v.metrics.enabled) }}
{{- $mistakes = append $mistakes
  "dashboards.enabled needs metrics.enabled: the dashboards show its metrics." }}
{{- end }}
{{- range $component := list "postgres" "valkey" }}
{{- $exporter := printf "%sExporter" $component }}
{{- if and (get $v.monitoring $exporter).enabled (not (get $v $component).enabled) }}
{{- $mistakes = append $mistakes (printf (cat
  "monitoring.%s.enabled runs in the pod of the bundled one, and %s.enabled is false: set it to false, and"
  "run an exporter beside yours.") $exporter $component) }}
{{- end }}
{{- end }}

{{- if and (include "prefect-hamilton.flows.isRegistered" .) (not $v.bootstrap.enabled) }}
{{- $mistakes = append $mistakes "flows.repository is registered by the bootstrap: set bootstrap.enabled." }}
{{- end }}
{{- if and $v.alerts.channels (not $v.bootstrap.enabled) }}
{{- $mistakes = append $mistakes "alerts.channels are registered by the bootstrap: set bootstrap.enabled." }}
{{- end }}
{{- if and $v.bootstrap.schedule (not $v.bootstrap.enabled) }}
{{- $mistakes = append $mistakes "bootstrap.schedule is the schedule of the bootstrap: set bootstrap.enabled." }}
{{- end }}
{{- if and $v.flows.repositories (include "prefect-hamilton.flows.repository" .) }}
{{- $mistakes = append $mistakes (cat
  "flows.repositories replaces flows.repository and gitServer.enabled: set only one of them.") }}
{{- end }}
{{- if and $v.flows.repositories $v.flows.gitCredential.existingSecret }}
{{- $mistakes = append $mistakes (cat
  "flows.gitCredential is for flows.repository: set the gitCredential of each of flows.repositories.") }}
{{- end }}
{{- $variables := dict }}
{{- range $name, $channel := $v.alerts.channels }}
{{- range $key := include "prefect-hamilton.alerts.keys" $channel | fromYamlArray }}
{{- $variable := include "prefect-hamilton.alerts.variable" (dict "channel" $name "key" $key) }}
{{- $where := printf "%s (%s)" $name $key }}
{{- with get $variables $variable }}
{{- $mistakes = append $mistakes (printf (cat
  "alerts.channels: %s and %s have the same environment variable, %s: rename one of the channels or keys.")
  . $where $variable) }}
{{- end }}
{{- $_ := set $variables $variable $where }}
{{- end }}
{{- end }}
{{- $poolsNamed := dict }}
{{- range $name, $preset := $v.alerts.presets }}
{{- if $preset.enabled }}
{{- $where := printf "alerts.presets.%s" $name }}
{{- range $channel := $preset.channels }}
{{- if not (hasKey ($v.alerts.channels | default dict) $channel) }}
{{- $mistakes = append $mistakes (printf
  "%s.channels: there is no channel %s: add it to alerts.channels." $where $channel) }}
{{- end }}
{{- end }}
{{- $_ := set $poolsNamed $where $preset.pools }}
{{- end }}
{{- end }}
{{- $sshKeys := dict }}
{{- range $name, $r := $v.flows.repositories }}
{{- $credential := $r.gitCredential | default dict }}
{{- $type := $credential.type | default "token" }}
{{- $isHttp := hasPrefix "http" $r.url }}
{{- $where := printf "flows.repositories.%s" $name }}
{{- $_ := set $poolsNamed $where $r.pools }}
{{- if and $isHttp (contains "@" $r.url) }}
{{- $mistakes = append $mistakes (printf (cat
  "%s.url contains a credential, which would be stored with each deployment: store it in a Secret and"
  "set gitCredential.existingSecret. Write an @ in the path as %%40.") $where) }}
{{- end }}
{{- if and $credential.existingSecret (eq $type "ssh") $isHttp }}
{{- $mistakes = append $mistakes (printf
  "%s.gitCredential.type is ssh: set the url to the repository's SSH address (ssh://git@host/path)." $where) }}
{{- end }}
{{- if and $credential.existingSecret (eq $type "token") (not $isHttp) }}
{{- $mistakes = append $mistakes (printf
  "%s.gitCredential.type: token is for a repository at an https:// address." $where) }}
{{- end }}
{{- if and $credential.existingSecret (eq $type "ssh") }}
{{- range include "prefect-hamilton.flows.poolsOf" (dict "root" $ "repository" $r) | fromYamlArray }}
{{- $other := get $sshKeys . }}
{{- if and $other (ne $other.secret $credential.existingSecret) }}
{{- $mistakes = append $mistakes (printf (cat
  "flows.repositories: %s and %s have different SSH keys, but share the work pool %s: set different"
  "pools, or use tokens.") $other.name $name .) }}
{{- end }}
{{- $_ := set $sshKeys . (dict "name" $name "secret" $credential.existingSecret) }}
{{- end }}
{{- end }}
{{- end }}
{{- $pools := include "prefect-hamilton.workPools" . | fromYaml }}
{{- range $where, $named := $poolsNamed }}
{{- range $pool := $named }}
{{- if and $pools (not (hasKey $pools $pool)) }}
{{- $mistakes = append $mistakes (printf
  "%s.pools: the release has no work pool %s: add it to workers." $where $pool) }}
{{- end }}
{{- end }}
{{- end }}
{{- $repository := $v.flows.repository | default "" }}
{{- if and $repository $v.gitServer.enabled }}
{{- $mistakes = append $mistakes
  "flows.repository and gitServer.enabled both name the repository to clone: set only one of them." }}
{{- end }}
{{- if and $v.flows.gitCredential.existingSecret $v.gitServer.enabled }}
{{- $mistakes = append $mistakes (cat
  "flows.gitCredential.existingSecret is for flows.repository; the bundled Git server requires no"
  "credential.") }}
{{- end }}
{{- if and (hasPrefix "git@" $repository) (ne $v.flows.gitCredential.type "ssh") }}
{{- $mistakes = append $mistakes (cat
  "flows.repository is an SSH address: set flows.gitCredential.type to ssh, and existingSecret to the"
  "Secret with the key.") }}
{{- end }}
{{- if and (eq $v.flows.gitCredential.type "ssh") (hasPrefix "http" $repository) }}
{{- $mistakes = append $mistakes (cat
  "flows.gitCredential.type is ssh: set flows.repository to the repository's SSH address"
  "(ssh://git@host/path).") }}
{{- end }}
{{- $isToken := and $v.flows.gitCredential.existingSecret (eq $v.flows.gitCredential.type "token") }}
{{- if and $isToken $repository (not (hasPrefix "http" $repository)) }}
{{- $mistakes = append $mistakes
  "flows.gitCredential.type: token is for a repository at an https:// address." }}
{{- end }}

{{- $mistakes = concat $mistakes (include "prefect-hamilton.flows.resultsMistakes" (dict
  "root" $ "where" "flows.results" "own" $v.flows.results "results" $v.flows.results) | fromYamlArray) }}

{{- if and (hasPrefix "http" $repository) (contains "@" $repository) }}
{{- $mistakes = append $mistakes (cat
  "flows.repository contains a credential, which would be stored with each deployment: store it in a"
  "Secret and set flows.gitCredential.existingSecret. Write an @ in the path as %40.") }}
{{- end }}
{{- range $name, $service := dict "server" $v.server.service "hamiltonUi" $v.hamiltonUi.service }}
{{- if and $service.nodePort (eq $service.type "ClusterIP") }}
{{- $mistakes = append $mistakes (printf
  "%s.service.nodePort is set: set %s.service.type to NodePort or LoadBalancer." $name $name) }}
{{- end }}
{{- end }}

{{- $slugs := dict }}
{{- $accounts := dict }}
{{- range $pool, $_ := include "prefect-hamilton.workPools" . | fromYaml }}
{{- $slug := include "prefect-hamilton.worker.slug" $pool }}
{{- with get $slugs $slug }}
{{- $mistakes = append $mistakes (printf
  "The work pools %s and %s give the same Kubernetes name: rename one." . $pool) }}
{{- end }}
{{- $_ := set $slugs $slug $pool }}
{{- $of := dict "root" $ "pool" $pool }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.flows.mistakes" $of | fromYamlArray) }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.flows.conflicts" $of | fromYamlArray) }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.flows.projectMistakes" $of | fromYamlArray) }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.flows.resultsMistakes" (dict
  "root" $
  "where" (printf "workers.%s.flows.results" $pool)
  "own" (include "prefect-hamilton.flows.ownResults" $of | fromYaml)
  "results" (include "prefect-hamilton.flows.results" $of | fromYaml)) | fromYamlArray) }}
{{- $account := printf "%s/%s"
  (include "prefect-hamilton.flows.namespaceOf" $of)
  (include "prefect-hamilton.flows.serviceAccountName" $of) }}
{{- $settings := include "prefect-hamilton.flows.serviceAccount" $of }}
{{- $other := get $accounts $account | default (dict "pool" $pool "settings" $settings) }}
{{- if ne $other.settings $settings }}
{{- $mistakes = append $mistakes (printf (cat
  "The flow pods of %s and %s share the ServiceAccount %s, but its settings differ: set a different"
  "workers.%s.flows.serviceAccount.name.") $other.pool $pool $account $pool) }}
{{- end }}
{{- $_ := set $accounts $account $other }}
{{- $s := include "prefect-hamilton.worker.settings" $of | fromYaml }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.podMistakes" (dict
  "what" (printf "The worker of %s" $pool) "where" "worker" "settings" $s) | fromYamlArray) }}
{{- $mistakes = concat $mistakes (include "prefect-hamilton.podMistakes" (dict
  "what" (printf "The flow pods of %s" $pool) "where" "flows"
  "settings" (include "prefect-hamilton.flows.settings" $of | fromYaml)) | fromYamlArray) }}
{{- if and $s.autoscaling.enabled (gt (int $s.autoscaling.minReplicas) (int $s.autoscaling.maxReplicas)) }}
{{- $mistakes = append $mistakes (printf
  "Autoscaling of the worker of %s: minReplicas is above maxReplicas." $pool) }}
{{- end }}
{{- end }}
{{- $autoscaling := $v.server.autoscaling }}
{{- if and $autoscaling.enabled (gt (int $autoscaling.minReplicas) (int $autoscaling.maxReplicas)) }}
{{- $mistakes = append $mistakes "server.autoscaling: minReplicas is above maxReplicas." }}
{{- end }}

{{- with $mistakes }}
{{- fail (concat (list "" "") . (list "") | join "\n") }}
{{- end }}
{{- end }}

{{/*
What contradicts itself in the settings of pods, as a list of sentences. Takes what they are, where to change
them, and settings.
*/}}
{{- define "prefect-hamilton.podMistakes" -}}
{{- $found := list }}
{{- $resources := .settings.resources | default dict }}
{{- $limits := $resources.limits | default dict }}
{{- range $name, $request := $resources.requests }}
{{- $limit := get $limits $name }}
{{- if and $request $limit (gt (include "prefect-hamilton.number" $request | float64)
                               (include "prefect-hamilton.number" $limit | float64)) }}
{{- $found = append $found (printf
  "%s: the request of %s (%v) is above the limit (%v): raise %s.resources.limits.%s."
  $.what $name $request $limit $.where $name) }}
{{- end }}
{{- end }}
{{- $budget := .settings.podDisruptionBudget | default dict }}
{{- if not (or (kindIs "invalid" $budget.minAvailable) (kindIs "invalid" $budget.maxUnavailable)) }}
{{- $found = append $found (printf
  "%s: minAvailable and maxUnavailable are both set: remove one from %s.podDisruptionBudget." .what .where) }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{/* A quantity of Kubernetes as a number. */}}
{{- define "prefect-hamilton.number" -}}
{{- $text := toString . }}
{{- $suffix := regexFind "[A-Za-z]*$" $text }}
{{- $factors := dict "" 1.0 "n" 1e-9 "u" 1e-6 "m" 1e-3
  "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1.125899906842624e15
  "Ei" 1.152921504606846976e18 }}
{{- mulf (trimSuffix $suffix $text | float64) (get $factors $suffix) }}
{{- end }}
