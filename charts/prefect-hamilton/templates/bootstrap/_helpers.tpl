{{- define "prefect-hamilton.bootstrap.name" -}}
{{ include "prefect-hamilton.fullname" . }}-bootstrap
{{- end }}

{{/* The desired state of this release, which the bootstrap adds to the image's desired-state.yaml. */}}
{{- define "prefect-hamilton.bootstrap.state" -}}
{{- $state := .Values.bootstrap.state -}}
{{- with include "prefect-hamilton.workPools" . | fromYaml }}
work_pools:
  {{- range $pool, $settings := . }}
  - name: {{ $pool | toYaml }}
    type: kubernetes
    description: Runs each flow run as a pod.
    {{- if not (kindIs "invalid" ($settings | default dict).concurrencyLimit) }}
    concurrency_limit: {{ int $settings.concurrencyLimit }}
    {{- end }}
    {{- if $.Values.hamiltonUi.enabled }}
    hamilton_tracking: true
    {{- with include "prefect-hamilton.bootstrap.hamiltonProject" $settings }}
    hamilton_project:
      {{- . | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- with ($settings | default dict).queues }}
    queues:
      {{- range $queue, $s := . }}
      - name: {{ $queue | toYaml }}
        {{- with $s.description }}
        description: {{ . | quote }}
        {{- end }}
        {{- with $s.priority }}
        priority: {{ int . }}
        {{- end }}
        {{- if not (kindIs "invalid" $s.concurrencyLimit) }}
        concurrency_limit: {{ int $s.concurrencyLimit }}
        {{- end }}
      {{- end }}
    {{- end }}
    base_job_template: base-job-template-{{ include "prefect-hamilton.worker.slug" $pool }}.yaml
  {{- end }}
{{- if $.Values.server.enabled }}
# A flow of the library, so that failed runs of every flows repository are reported.
deployments:
  - name: on-failure-k8s
    entrypoint: prefect_hamilton.flows.failed_run_report.failed_run_report
    work_pool: {{ hasKey . "kubernetes" | ternary "kubernetes" (keys . | sortAlpha | first) | toYaml }}
    tags: [alert]
    job_variables:
      image: {from_env: FLOWS_IMAGE}
{{- end }}
{{- end }}
{{- $blocks := $state.blocks | default list }}
{{- range $name, $repository := .Values.flows.repositories }}
{{- if include "prefect-hamilton.bootstrap.tokenSecret" $repository }}
{{- $blocks = prepend $blocks (dict
  "name" (printf "git-access-token-%s" $name)
  "type" "secret"
  "optional" true
  "values" (dict "value" (dict "from_env" (include "prefect-hamilton.bootstrap.tokenVariable" $name)))) }}
{{- end }}
{{- end }}
{{- $named := list }}
{{- range $blocks }}
{{- $named = append $named (printf "%s/%s" .type .name) }}
{{- end }}
{{- if not (or (include "prefect-hamilton.warehouse.secretName" .) (has "secret/warehouse-url" $named)) }}
{{- $url := dict
  "name" "warehouse-url"
  "type" "secret"
  "optional" true
  "values" (dict "value" (dict "from_env" "WAREHOUSE_URL")) }}
{{- $blocks = prepend $blocks $url }}
{{- end }}
{{- range $name, $bucket := include "prefect-hamilton.flows.resultsBlocks" . | fromYaml }}
{{- $blocks = prepend $blocks (dict
  "name" $name
  "type" "remote-file-system"
  "values" (dict "basepath" $bucket)) }}
{{- end }}
{{- range $key, $entries := merge (dict "blocks" $blocks) (omit $state "automations") }}
{{- with $entries }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- $named = list }}
{{- range $state.automations }}
{{- $named = append $named .name }}
{{- end }}
automations:
  {{- if not (has "report-failed-runs" $named) }}
  {{- .Files.Get "files/report-failed-runs.yaml" | trim | nindent 2 }}
  {{- end }}
  {{- with $state.automations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with include "prefect-hamilton.alerts.channels" . }}
alerts:
  channels:
    {{- . | trim | nindent 4 }}
  presets:
    {{- toYaml $.Values.alerts.presets | nindent 4 }}
  {{- with $.Values.logs.url }}
  logs_url: {{ . | toYaml }}
  {{- end }}
{{- end }}
{{- if .Values.hamiltonUi.enabled }}
hamilton:
  name: {{ .Values.hamiltonUi.project | toYaml }}
  username: {from_env: HAMILTON_UI_USERNAME}
  {{- with .Values.hamiltonUi.users }}
  users:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else }}
hamilton: null
{{- end }}
{{- end }}

{{/* A pool's own project in the Hamilton UI, if it has one. Takes the pool's values. */}}
{{- define "prefect-hamilton.bootstrap.hamiltonProject" -}}
{{- with (. | default dict).hamiltonUi }}
{{- if .project -}}
name: {{ .project | toYaml }}
{{- with .users }}
users:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The keys of a channel's Secret. Takes the channel. */}}
{{- define "prefect-hamilton.alerts.keys" -}}
{{- $keys := dict
  "discord" (list "webhook_id" "webhook_token")
  "mattermost" (list "token")
  "pagerduty" (list "integration_key" "api_key")
  "opsgenie" (list "apikey")
  "sendgrid" (list "api_key") }}
{{- concat (get $keys .type | default (list "url")) (.keys | default list) | uniq | toYaml }}
{{- end }}

{{/* The variable with a secret of a channel. Takes channel, its name, and key. */}}
{{- define "prefect-hamilton.alerts.variable" -}}
{{- printf "ALERTS_%s_%s" .channel .key | upper | replace "-" "_" | replace "." "_" }}
{{- end }}

{{- define "prefect-hamilton.alerts.channels" -}}
{{- range $name, $channel := .Values.alerts.channels }}
{{ $name | toYaml }}:
  type: {{ $channel.type }}
  secrets:
    {{- range include "prefect-hamilton.alerts.keys" $channel | fromYamlArray }}
    {{ . | toYaml }}: {from_env: {{ include "prefect-hamilton.alerts.variable" (dict "channel" $name "key" .) }}}
    {{- end }}
  {{- with $channel.values }}
  values:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The secrets of the channels as environment variables of the bootstrap, which leaves out a channel without them. */}}
{{- define "prefect-hamilton.alerts.env" -}}
{{- range $name, $channel := .Values.alerts.channels }}
{{- range include "prefect-hamilton.alerts.keys" $channel | fromYamlArray }}
{{ include "prefect-hamilton.alerts.variable" (dict "channel" $name "key" .) }}:
  secretKeyRef:
    name: {{ $channel.existingSecret | toYaml }}
    key: {{ . | toYaml }}
    optional: true
{{- end }}
{{- end }}
{{- end }}

{{/* The Secret with a repository's token, if it has one. Takes the repository. */}}
{{- define "prefect-hamilton.bootstrap.tokenSecret" -}}
{{- $credential := .gitCredential | default dict }}
{{- if eq ($credential.type | default "token") "token" }}{{ $credential.existingSecret | default "" }}{{ end }}
{{- end }}

{{/* The Secret with a repository's SSH key, if it has one. Takes the repository. */}}
{{- define "prefect-hamilton.bootstrap.sshSecret" -}}
{{- $credential := .gitCredential | default dict }}
{{- if eq ($credential.type | default "token") "ssh" }}{{ $credential.existingSecret | default "" }}{{ end }}
{{- end }}

{{/* The variable of the bootstrap that holds a repository's token. Takes its name. */}}
{{- define "prefect-hamilton.bootstrap.tokenVariable" -}}
{{- printf "GIT_ACCESS_TOKEN_%s" (. | upper | replace "-" "_") }}
{{- end }}

{{/* The repositories, as the bootstrap reads them with --repositories. */}}
{{- define "prefect-hamilton.bootstrap.repositories" -}}
{{- range $name, $r := .Values.flows.repositories }}
{{ $name | toYaml }}:
  url: {{ $r.url | toYaml }}
  ref: {{ $r.ref | default "main" | quote }}
  path: {{ $r.path | default "." | quote }}
  prefect_files: {{ $r.prefectFiles | default (list "prefect.yaml") | toJson }}
  deployments: {{ $r.deployments | default (list "*-k8s") | toJson }}
  submodules: {{ $r.submodules | default false }}
  pools: {{ include "prefect-hamilton.flows.poolsOf" (dict "root" $ "repository" $r) | fromYamlArray | toJson }}
  tags: {{ $r.tags | default list | toJson }}
  prune: {{ hasKey $r "prune" | ternary $r.prune true }}
  {{- if include "prefect-hamilton.bootstrap.tokenSecret" $r }}
  environment:
    # A reference to a block, so that no token is stored with a deployment.
    FLOWS_ACCESS_TOKEN: {{ printf "{{ prefect.blocks.secret.git-access-token-%s }}" $name | quote }}
    GIT_ACCESS_TOKEN: {from_env: {{ include "prefect-hamilton.bootstrap.tokenVariable" $name }}}
  credential: {secret: {{ $r.gitCredential.existingSecret | toYaml }}, key: token}
  {{- else if include "prefect-hamilton.bootstrap.sshSecret" $r }}
  environment:
    GIT_SSH_COMMAND: {{ printf "/git-credentials/%s" $name | include "prefect-hamilton.flows.sshCommand" }}
  credential:
    secret: {{ $r.gitCredential.existingSecret | toYaml }}
    key: ssh-privatekey
    folder: /git-credentials/{{ $name }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.bootstrap.data" -}}
state.yaml: |
  {{- include "prefect-hamilton.bootstrap.state" . | trim | nindent 2 }}
{{- with include "prefect-hamilton.bootstrap.repositories" . }}
repositories.yaml: |
  {{- trim . | nindent 2 }}
{{- end }}
{{- range $pool, $_ := include "prefect-hamilton.workPools" . | fromYaml }}
base-job-template-{{ include "prefect-hamilton.worker.slug" $pool }}.yaml: |
  {{- include "prefect-hamilton.flows.baseJobTemplate" (dict "root" $ "pool" $pool) | nindent 2 }}
{{- end }}
{{- end }}

{{/* The name of the release's record on the server, as environment variables. */}}
{{- define "prefect-hamilton.bootstrap.release" -}}
{{- with .Values.bootstrap.recordName -}}
BOOTSTRAP_RELEASE: {{ . | quote }}
{{- else -}}
BOOTSTRAP_NAMESPACE:
  fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}
BOOTSTRAP_RELEASE: $(BOOTSTRAP_NAMESPACE)/{{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.bootstrap.env" -}}
{{- $credential := .Values.flows.gitCredential -}}
{{ include "prefect-hamilton.api.env" . }}
PREFECT_HOME: /tmp/prefect
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{ include "prefect-hamilton.bootstrap.release" . }}
{{- if include "prefect-hamilton.hasWorkers" . }}
FLOWS_NAMESPACE:
  {{- include "prefect-hamilton.flows.namespaceValue" (dict
    "root" .
    "namespace" (include "prefect-hamilton.flows.namespace" .)) | nindent 2 }}
FLOWS_IMAGE: {{ include "prefect-hamilton.image" (dict "root" . "image" .Values.flows.image) }}
{{- range $pool, $_ := include "prefect-hamilton.workPools" . | fromYaml }}
{{- $s := include "prefect-hamilton.flows.settings" (dict "root" $ "pool" $pool) | fromYaml }}
{{- $variable := include "prefect-hamilton.flows.imageVariable" (dict "root" $ "pool" $pool) }}
{{ $variable }}: {{ include "prefect-hamilton.image" (dict "root" $ "image" $s.image) }}
{{- if include "prefect-hamilton.flows.isApart" (dict "root" $ "pool" $pool) }}
{{ include "prefect-hamilton.flows.namespaceVariable" (dict "root" $ "pool" $pool) }}:
  {{- include "prefect-hamilton.flows.namespaceValue" (dict
    "root" $
    "namespace" (include "prefect-hamilton.flows.namespaceOf" (dict "root" $ "pool" $pool))) | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.hamiltonUi.enabled }}
HAMILTON_API_URL: {{ include "prefect-hamilton.hamilton-ui.apiUrl" . | toYaml }}
HAMILTON_UI_URL: {{ include "prefect-hamilton.hamilton-ui.url" . | toYaml }}
HAMILTON_UI_USERNAME: {{ .Values.hamiltonUi.username | quote }}
HAMILTON_API_KEY:
  secretKeyRef:
    name: {{ include "prefect-hamilton.hamilton-ui.secretName" . | toYaml }}
    key: api-key
{{- end }}
{{- include "prefect-hamilton.alerts.env" . }}
{{- with include "prefect-hamilton.warehouse.secretName" . }}
WAREHOUSE_URL:
  secretKeyRef:
    name: {{ . | toYaml }}
    key: {{ include "prefect-hamilton.warehouse.key" $ | toYaml }}
{{- end }}
{{- with include "prefect-hamilton.flows.repository" . }}
FLOWS_REPOSITORY: {{ . | quote }}
FLOWS_REF: {{ $.Values.flows.ref | quote }}
{{- if $.Values.flows.submodules }}
FLOWS_SUBMODULES: "true"
{{- end }}
{{- end }}
{{- if $credential.existingSecret }}
{{- if eq $credential.type "token" }}
# A reference to a block, so that no token is stored with a deployment.
FLOWS_ACCESS_TOKEN: "{{ "{{ prefect.blocks.secret.git-access-token }}" }}"
GIT_ACCESS_TOKEN:
  secretKeyRef:
    name: {{ $credential.existingSecret | toYaml }}
    key: token
{{- else }}
GIT_SSH_COMMAND: {{ include "prefect-hamilton.flows.sshCommand" "/git-credential" }}
{{- end }}
{{- end }}
{{- range $name, $repository := .Values.flows.repositories }}
{{- with include "prefect-hamilton.bootstrap.tokenSecret" $repository }}
{{ include "prefect-hamilton.bootstrap.tokenVariable" $name }}:
  secretKeyRef:
    name: {{ . | toYaml }}
    key: token
    # A Secret that is missing fails its own repository alone.
    optional: true
{{- end }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.bootstrap.jobSpec" -}}
{{- $s := include "prefect-hamilton.settings" (dict "root" . "own" .Values.bootstrap) | fromYaml }}
{{- $context := dict
  "root" .
  "component" "bootstrap"
  "settings" $s
  "image" .Values.server.image
  "checksum" (include "prefect-hamilton.bootstrap.data" .) -}}
{{- $usesSsh := and (eq .Values.flows.gitCredential.type "ssh") .Values.flows.gitCredential.existingSecret -}}
backoffLimit: 6
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
      - name: bootstrap
        {{- include "prefect-hamilton.container" $context | nindent 8 }}
        args:
          - python
          - -m
          - prefect_hamilton.bootstrap
          - apply
          - --add=/bootstrap/state.yaml
          - --timeout={{ .Values.bootstrap.timeoutSeconds }}
          {{- if not .Values.bootstrap.prune }}
          - --no-prune
          {{- end }}
          {{- if include "prefect-hamilton.flows.repository" . }}
          {{- range .Values.flows.deployments }}
          - {{ printf "--deployment=%s" . | quote }}
          {{- end }}
          {{- end }}
          {{- if .Values.flows.repositories }}
          - --repositories=/bootstrap/repositories.yaml
          {{- end }}
        {{- $own := include "prefect-hamilton.bootstrap.env" . }}
        {{- include "prefect-hamilton.env" (dict "own" $own "settings" $s) | nindent 8 }}
        resources:
          {{- toYaml $s.resources | nindent 10 }}
        volumeMounts:
          - {name: bootstrap, mountPath: /bootstrap, readOnly: true}
          - {name: tmp, mountPath: /tmp}
          {{- $awaited := include "prefect-hamilton.secrets.awaited" (dict "root" . "env" $own) }}
          {{- if $awaited }}
          - {name: awaited-secrets, mountPath: /awaited-secrets, readOnly: true}
          {{- end }}
          {{- if $usesSsh }}
          - {name: git-credential, mountPath: /git-credential, readOnly: true}
          {{- end }}
          {{- range $name, $repository := .Values.flows.repositories }}
          {{- if include "prefect-hamilton.bootstrap.sshSecret" $repository }}
          - {name: git-credential-{{ $name }}, mountPath: /git-credentials/{{ $name }}, readOnly: true}
          {{- end }}
          {{- end }}
          {{- with $s.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: bootstrap
        configMap:
          name: {{ include "prefect-hamilton.bootstrap.name" . | toYaml }}
      - name: tmp
        emptyDir: {}
      {{- with $awaited }}
      {{- trim . | nindent 6 }}
      {{- end }}
      {{- if $usesSsh }}
      - name: git-credential
        secret:
          secretName: {{ .Values.flows.gitCredential.existingSecret | toYaml }}
          defaultMode: 0440
      {{- end }}
      {{- range $name, $repository := .Values.flows.repositories }}
      {{- with include "prefect-hamilton.bootstrap.sshSecret" $repository }}
      - name: git-credential-{{ $name }}
        secret:
          secretName: {{ . | toYaml }}
          defaultMode: 0440
          optional: true
      {{- end }}
      {{- end }}
      {{- with $s.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}
