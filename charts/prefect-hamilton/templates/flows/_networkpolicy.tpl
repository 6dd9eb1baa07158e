{{/*
A NetworkPolicy of flow pods in a namespace: those of one pool, or of all but some. Takes root, name, namespace,
loadsBundledWarehouse, egress (null opens every address), value (the name of the value that egress is), and slug
of the pool or others, the slugs of those with their own.
*/}}
{{- define "prefect-hamilton.flows.networkPolicy" -}}
{{- $at := dict "root" .root "at" .namespace }}
{{- $values := .root.Values }}
{{- $context := dict "root" .root "component" "flow-run" "name" .name "namespace" .namespace }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "prefect-hamilton.metadata" $context | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      # Prefect sets the label app.kubernetes.io/name of flow pods.
      app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
      app.kubernetes.io/component: flow-run
      {{- with .slug }}
      prefect-hamilton/work-pool: {{ . | toYaml }}
      {{- end }}
    {{- with .others }}
    matchExpressions:
      - {key: prefect-hamilton/work-pool, operator: NotIn, values: {{ toJson . }}}
    {{- end }}
  policyTypes: [Ingress, Egress]
  egress:
    {{- if kindIs "invalid" .egress }}
    # Every address; restrict it with networkPolicy.flowsEgress.
    - {}
    {{- else }}
    {{- include "prefect-hamilton.network.dns" .root | nindent 4 }}
    {{- include "prefect-hamilton.network.api" $at | nindent 4 }}
    {{- if $values.hamiltonUi.enabled }}
    {{- include "prefect-hamilton.network.hamilton-ui" $at | nindent 4 }}
    {{- end }}
    {{- if .loadsBundledWarehouse }}
    {{- include "prefect-hamilton.network.postgres" $at | nindent 4 }}
    {{- end }}
    {{- if $values.gitServer.enabled }}
    {{- include "prefect-hamilton.network.git" $at | nindent 4 }}
    {{- end }}
    {{- with $values.telemetry.otlp.endpoint }}
    # The collector, at {{ . }}.
    - ports:
        - {port: {{ include "prefect-hamilton.network.urlPort" . }}, protocol: TCP}
    {{- end }}
    {{- with .egress }}
    # {{ $.value }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with include "prefect-hamilton.network.extraEgress" $context }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}
