{{/*
Metadata of a pod template. It holds nothing that changes with the chart's version, so that an upgrade
rolls only what it changes. Takes root, component and settings; optionally checksum: text whose change
rolls the pods.
*/}}
{{- define "prefect-hamilton.podMetadata" -}}
labels:
  {{- include "prefect-hamilton.selectorLabels" . | nindent 2 }}
  {{- with merge (dict) (.labels | default dict) (.settings.podLabels | default dict) (.root.Values.global.labels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (.settings.podAnnotations | default dict) }}
{{- with .checksum }}
{{- $_ := set $annotations "checksum/config" (sha256sum .) }}
{{- end }}
{{- with .root.Values.rolloutToken }}
{{- $_ := set $annotations "prefect-hamilton/rollout-token" . }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The pod settings of `global` with a component's own over them, as YAML. Takes root and own; optionally
isPassive: the pods send no requests, so a change of the proxy or the bundle must not restart them.
*/}}
{{- define "prefect-hamilton.settings" -}}
{{- $shared := omit .root.Values.global "imageRegistry" "imagePullPolicy" "imagePullSecrets" "labels" "annotations" "proxy" "caBundle" }}
{{- $settings := include "prefect-hamilton.overlaid" (dict "base" $shared "own" .own) | fromYaml }}
{{- if .isPassive }}
{{- toYaml $settings }}
{{- else }}
{{- include "prefect-hamilton.company.settings" (dict "root" .root "settings" $settings) }}
{{- end }}
{{- end }}

{{/*
Settings with others over them, as YAML. A variable of `env` is replaced as a whole: merged, it could have
two sources. Takes base and own.
*/}}
{{- define "prefect-hamilton.overlaid" -}}
{{- $base := deepCopy .base }}
{{- range $name, $_ := .own.env | default dict }}
{{- $_ := unset ($base.env | default dict) $name }}
{{- end }}
{{- toYaml (mergeOverwrite $base (deepCopy .own)) }}
{{- end }}

{{/* Reference of an image. Takes root and image. */}}
{{- define "prefect-hamilton.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry }}
{{- $repository := empty $registry | ternary .image.repository (printf "%s/%s" $registry .image.repository) }}
{{- if .image.digest }}
{{- printf "%s@%s" $repository .image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.image.tag | default (include "prefect-hamilton.version" .root)) }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.withoutNulls" -}}
{{- $kept := dict }}
{{- range $key, $value := . }}
{{- if ne (kindOf $value) "invalid" }}
{{- $_ := set $kept $key $value }}
{{- end }}
{{- end }}
{{- toYaml $kept }}
{{- end }}

{{/* Security context of a pod, as Pod Security `restricted` wants it. Takes user and own. */}}
{{- define "prefect-hamilton.podSecurityContext" -}}
{{- $base := dict
  "runAsNonRoot" true
  "runAsUser" .user
  "runAsGroup" .user
  "fsGroup" .user
  "fsGroupChangePolicy" "OnRootMismatch"
  "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- include "prefect-hamilton.withoutNulls" (mergeOverwrite $base (deepCopy (.own | default dict))) }}
{{- end }}

{{- define "prefect-hamilton.securityContext" -}}
{{- $base := dict
  "allowPrivilegeEscalation" false
  "readOnlyRootFilesystem" true
  "capabilities" (dict "drop" (list "ALL")) }}
{{- include "prefect-hamilton.withoutNulls" (mergeOverwrite $base (deepCopy (.own | default dict))) }}
{{- end }}

{{/*
The fields that all pods have. Takes root, component and settings; optionally serviceAccountName,
token: whether the pod talks to the Kubernetes API, user: its user id, spread: whether replicas are
spread over nodes.
*/}}
{{- define "prefect-hamilton.pod" -}}
{{- with .serviceAccountName -}}
serviceAccountName: {{ . | toYaml }}
{{ end -}}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
securityContext:
  {{- include "prefect-hamilton.podSecurityContext" (dict
    "user" (.user | default 1001)
    "own" .settings.podSecurityContext) | nindent 2 }}
{{- with .settings.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ int . }}
{{- end }}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | toYaml }}
  {{- end }}
{{- end }}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .settings.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .settings.topologySpreadConstraints | nindent 2 }}
{{- else if .spread }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "prefect-hamilton.selectorLabels" . | nindent 8 }}
        {{- with .labels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . | toYaml }}
{{- end }}
{{- with include "prefect-hamilton.placement" .settings }}
{{ . | trim }}
{{- end }}
{{- end }}

{{/* Fields that components and flow pods share. Takes settings. */}}
{{- define "prefect-hamilton.placement" -}}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | toYaml }}
{{- end }}
{{- with .schedulerName }}
schedulerName: {{ . | toYaml }}
{{- end }}
{{- with .hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image, pull policy and security context of a container. Takes root, image and settings. */}}
{{- define "prefect-hamilton.container" -}}
image: {{ include "prefect-hamilton.image" . | toYaml }}
imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
securityContext:
  {{- include "prefect-hamilton.securityContext" (dict "own" .settings.securityContext) | nindent 2 }}
{{- end }}

{{/*
A server waits before it ends, until its Service sends it no new requests, so that none meets a closed
port. The grace period includes the wait, and must leave time after it.
Takes settings.
*/}}
{{- define "prefect-hamilton.leaveService" -}}
{{- if gt (int .settings.terminationGracePeriodSeconds) 5 -}}
lifecycle:
  preStop:
    sleep: {seconds: 5}
{{- end }}
{{- end }}

{{/* Whether a component has several pods. Takes settings. */}}
{{- define "prefect-hamilton.isReplicated" -}}
{{- if or (gt (int .settings.replicas) 1) (.settings.autoscaling | default dict).enabled }}true{{ end }}
{{- end }}
