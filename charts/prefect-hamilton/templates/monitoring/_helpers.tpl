{{- define "prefect-hamilton.metrics.name" -}}
{{ include "prefect-hamilton.fullname" . }}-metrics
{{- end }}

{{/* Environment of the exporter of metrics. */}}
{{- define "prefect-hamilton.metrics.env" -}}
{{ include "prefect-hamilton.api.env" . }}
PREFECT_HOME: /tmp/prefect
{{- with include "prefect-hamilton.logs.env" . }}
{{ . }}
{{- end }}
{{- if .Values.server.enabled }}
PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: {{ include "prefect-hamilton.server.wantsCsrfTokens" . | eq "true" }}
PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: false
{{- end }}
{{- end }}

{{/* Whether a sidecar serves metrics of the bundled PostgreSQL. */}}
{{- define "prefect-hamilton.postgres.hasExporter" -}}
{{- if and .Values.postgres.enabled .Values.monitoring.postgresExporter.enabled }}true{{ end }}
{{- end }}

{{/* Whether a sidecar serves metrics of the bundled Valkey. */}}
{{- define "prefect-hamilton.valkey.hasExporter" -}}
{{- if and .Values.valkey.enabled .Values.monitoring.valkeyExporter.enabled }}true{{ end }}
{{- end }}

{{/* When a CronJob has not succeeded since it was due, or has not been created: by its own times, so that it
holds for every schedule. Takes namespace and name. */}}
{{- define "prefect-hamilton.alert.cronJob" -}}
{{- $of := printf `namespace="%s",cronjob="%s"` (index . 0) (index . 1) -}}
kube_cronjob_status_last_schedule_time{ {{- $of -}} }
> (kube_cronjob_status_last_successful_time or kube_cronjob_created)
or time() - kube_cronjob_next_schedule_time{ {{- $of -}} } > 0
{{- end }}

{{/* Ingress of a pod's metrics. Takes root and port. */}}
{{- define "prefect-hamilton.network.metrics" -}}
{{- if .root.Values.networkPolicy.metricsFrom -}}
# networkPolicy.metricsFrom
- from:
    {{- toYaml .root.Values.networkPolicy.metricsFrom | nindent 4 }}
  ports:
    - {port: {{ .port }}, protocol: TCP}
{{- else -}}
# Open to every peer; restrict it with networkPolicy.metricsFrom.
- ports:
    - {port: {{ .port }}, protocol: TCP}
{{- end }}
{{- end }}

{{/* Service of the port `metrics` of a component's pods. Takes root, component and name. */}}
{{- define "prefect-hamilton.metricsService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "prefect-hamilton.metadata" . | nindent 2 }}
spec:
  {{- with include "prefect-hamilton.ipFamilies" .root }}
  {{- trim . | nindent 2 }}
  {{- end }}
  # Only to find the pods: each has metrics of its own.
  clusterIP: None
  selector:
    {{- include "prefect-hamilton.selectorLabels" . | nindent 4 }}
  ports:
    - name: metrics
      port: 9090
      targetPort: metrics
{{- end }}

{{/* ServiceMonitor of a component's port `metrics`. Takes root, component and name. */}}
{{- define "prefect-hamilton.exporterMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  {{- include "prefect-hamilton.metadata" (merge (dict "labels" .root.Values.serviceMonitor.labels) .) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "prefect-hamilton.selectorLabels" . | nindent 6 }}
  endpoints:
    - port: metrics
      path: /metrics
      interval: {{ .root.Values.serviceMonitor.interval | toYaml }}
{{- end }}

{{/* Line of an alert's annotations with its section in docs/runbooks.md, if known. Takes root and alert. */}}
{{- define "prefect-hamilton.alert.runbook" -}}
{{- $home := .root.Chart.Home | default "" -}}
{{- $known := empty $home | ternary "" (printf "%s/blob/main/docs/runbooks.md" (trimSuffix "/" $home)) -}}
{{- with .root.Values.prometheusRule.runbookUrl | default $known -}}
{{- printf "runbook_url: %s#%s" . (lower $.alert) | nindent 12 }}
{{- end }}
{{- end }}
