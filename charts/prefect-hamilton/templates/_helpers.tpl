{{/* Names: at most 40 characters, so that every suffix fits into the 63 of a label. */}}

{{- define "prefect-hamilton.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "prefect-hamilton.fullname" -}}
{{- $name := include "prefect-hamilton.name" . }}
{{- $own := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $own | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "prefect-hamilton.selectorLabels" -}}
app.kubernetes.io/name: {{ include "prefect-hamilton.name" .root | toYaml }}
app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Metadata of an object. Takes root, component and name; optionally annotations, namespace. */}}
{{- define "prefect-hamilton.metadata" -}}
{{- $annotations := merge (dict) (.annotations | default dict) (.root.Values.global.annotations | default dict) -}}
name: {{ .name | toYaml }}
namespace: {{ .namespace | default .root.Release.Namespace | toYaml }}
labels:
  {{- include "prefect-hamilton.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  {{- with merge (dict) (.labels | default dict) (.root.Values.global.labels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Metadata of a pod template: nothing that changes with the chart's version, so that an upgrade rolls
only what it changes. Takes root, component and settings; optionally checksum: text whose change
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

{{/* The pod settings of `global` with a component's own over them, as YAML. Takes root and own. */}}
{{- define "prefect-hamilton.settings" -}}
{{- $shared := omit .root.Values.global "imageRegistry" "imagePullPolicy" "imagePullSecrets" "labels" "annotations" }}
{{- mergeOverwrite (deepCopy $shared) (deepCopy .own) | toYaml }}
{{- end }}

{{/* Reference of an image. Takes root and image. */}}
{{- define "prefect-hamilton.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry }}
{{- $repository := empty $registry | ternary .image.repository (printf "%s/%s" $registry .image.repository) }}
{{- if .image.digest }}
{{- printf "%s@%s" $repository .image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) }}
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
What all pods have in common. Takes root, component and settings; optionally serviceAccountName,
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
  {{- include "prefect-hamilton.podSecurityContext" (dict "user" (.user | default 1001) "own" .settings.podSecurityContext) | nindent 2 }}
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
{{- with .settings.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Environment of a container as a list: the chart's own (YAML text, name to value or source) and the
settings' `env` over it; a null removes a name. What the pod knows of itself comes first, so that
the others can name it: $(POD_NAMESPACE). Takes own and settings.
*/}}
{{- define "prefect-hamilton.env" -}}
{{- $own := fromYaml .own -}}
{{- range $name, $value := .settings.env -}}
{{- $_ := set $own $name $value -}}
{{- end -}}
{{- with $own -}}
env:
{{- $others := dict }}
{{- range $name, $value := . }}
{{- if and (kindIs "map" $value) (hasKey $value "fieldRef") }}
  - name: {{ $name }}
    valueFrom:
      {{- toYaml $value | nindent 6 }}
{{- else }}
{{- $_ := set $others $name $value }}
{{- end }}
{{- end }}
{{- range $name, $value := $others }}
{{- if kindIs "map" $value }}
  - name: {{ $name | toYaml }}
    valueFrom:
      {{- toYaml $value | nindent 6 }}
{{- else if contains "\n" (toString $value) }}
  - name: {{ $name }}
    value: |-
      {{- $value | nindent 6 }}
{{- else if ne (kindOf $value) "invalid" }}
  - name: {{ $name | toYaml }}
    value: {{ include "prefect-hamilton.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .settings.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A scalar as text; a whole number without an exponent, which Helm gives to a large one. */}}
{{- define "prefect-hamilton.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* Image, pull policy and security context of a container. Takes root, image and settings. */}}
{{- define "prefect-hamilton.container" -}}
image: {{ include "prefect-hamilton.image" . | toYaml }}
imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
securityContext:
  {{- include "prefect-hamilton.securityContext" (dict "own" .settings.securityContext) | nindent 2 }}
{{- end }}

{{/*
What a server does before it ends: it waits until its Service sends it nothing new, so that no request
meets a closed port. The grace period counts from before the wait, and must leave time after it.
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

{{/* Text as a ConfigMap's data: indented, but for its empty lines. */}}
{{- define "prefect-hamilton.data" -}}
{{- regexReplaceAll "(?m)^ +$" (nindent 2 .) "" }}
{{- end }}

{{- define "prefect-hamilton.podDisruptionBudget" -}}
{{- $budget := .settings.podDisruptionBudget | default dict -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "prefect-hamilton.metadata" . | nindent 2 }}
spec:
  {{- if $budget.minAvailable }}
  minAvailable: {{ $budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ $budget.maxUnavailable | default 1 }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "prefect-hamilton.selectorLabels" . | nindent 6 }}
      {{- with .labels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}

{{- define "prefect-hamilton.autoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "prefect-hamilton.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name | toYaml }}
  minReplicas: {{ .settings.autoscaling.minReplicas }}
  maxReplicas: {{ .settings.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .settings.autoscaling.targetCpu }}
{{- end }}

{{/* A Service. Takes root, component, name, service and target (name of the container's port). */}}
{{- define "prefect-hamilton.service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "prefect-hamilton.metadata" (merge (dict "annotations" .service.annotations) .) | nindent 2 }}
spec:
  type: {{ .service.type }}
  selector:
    {{- include "prefect-hamilton.selectorLabels" . | nindent 4 }}
  ports:
    - name: http
      port: {{ .service.port }}
      targetPort: http
      {{- with .service.nodePort }}
      nodePort: {{ . }}
      {{- end }}
{{- end }}

{{- define "prefect-hamilton.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "prefect-hamilton.metadata" (merge (dict "annotations" .account.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}

{{/* Name of a component's ServiceAccount. Takes root, account and component. */}}
{{- define "prefect-hamilton.serviceAccountName" -}}
{{- $own := printf "%s-%s" (include "prefect-hamilton.fullname" .root) .component }}
{{- .account.name | default (.account.create | ternary $own "default") }}
{{- end }}

{{- define "prefect-hamilton.persistentVolumeClaim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- $keep := .storage.keep | ternary (dict "helm.sh/resource-policy" "keep") dict }}
  {{- include "prefect-hamilton.metadata" (merge (dict "annotations" $keep) .) | nindent 2 }}
spec:
  accessModes: [ReadWriteOnce]
  {{- with .storage.storageClass }}
  storageClassName: {{ . | toYaml }}
  {{- end }}
  resources:
    requests:
      storage: {{ .storage.size }}
{{- end }}

{{/* The claim template of a StatefulSet. Takes storage. */}}
{{- define "prefect-hamilton.volumeClaimTemplates" -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: {{ .storage.keep | ternary "Retain" "Delete" }}
  whenScaled: Retain
volumeClaimTemplates:
  - metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .storage.storageClass }}
      storageClassName: {{ . | toYaml }}
      {{- end }}
      resources:
        requests:
          storage: {{ .storage.size }}
{{- end }}
