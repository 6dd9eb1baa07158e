{{- define "prefect-hamilton.podDisruptionBudget" -}}
{{- $budget := .settings.podDisruptionBudget | default dict -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "prefect-hamilton.metadata" . | nindent 2 }}
spec:
  {{- if not (kindIs "invalid" $budget.minAvailable) }}
  minAvailable: {{ $budget.minAvailable }}
  {{- else if kindIs "invalid" $budget.maxUnavailable }}
  maxUnavailable: 1
  {{- else }}
  maxUnavailable: {{ $budget.maxUnavailable }}
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

{{/* What a Service says about IPv4 and IPv6. The cluster decides what `global` leaves open. */}}
{{- define "prefect-hamilton.ipFamilies" -}}
{{- with .Values.global.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.global.ipFamilies }}
ipFamilies: {{ toJson . }}
{{- end }}
{{- end }}

{{/* A Service. Takes root, component, name, service and target (name of the container's port). */}}
{{- define "prefect-hamilton.service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "prefect-hamilton.metadata" (merge (dict "annotations" .service.annotations) .) | nindent 2 }}
spec:
  type: {{ .service.type }}
  {{- with include "prefect-hamilton.ipFamilies" .root }}
  {{- trim . | nindent 2 }}
  {{- end }}
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
