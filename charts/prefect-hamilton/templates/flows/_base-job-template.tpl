{{/*
The base job template of a work pool. Names in double braces are Prefect's job variables. `from_env`
names a variable of the bootstrap: image and namespace are set on its Job, where Kustomize can change them.
Takes root and pool.
*/}}
{{- define "prefect-hamilton.flows.baseJobTemplate" -}}
{{- $root := .root }}
{{- $s := include "prefect-hamilton.flows.settings" . | fromYaml }}
{{- $resources := $s.resources | default dict }}
{{- $results := include "prefect-hamilton.flows.results" . | fromYaml }}
{{- with $results.existingSecret }}
{{- /* First, so that flows.envFrom can override it. */}}
{{- $_ := set $s "envFrom" (prepend ($s.envFrom | default list) (dict "secretRef" (dict "name" .))) }}
{{- end }}
{{- $requests := $resources.requests | default dict }}
{{- $limits := $resources.limits | default dict }}
{{- $sshSecret := include "prefect-hamilton.flows.sshSecret" . }}
{{- $labels := dict
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/component" "flow-run"
  "prefect-hamilton/work-pool" (include "prefect-hamilton.worker.slug" .pool) }}
{{- $labels = merge $labels ($s.podLabels | default dict) ($root.Values.global.labels | default dict) -}}
variables:
  type: object
  properties:
    name:
      title: Name
      description: Start of the names of Job and pod.
      type: string
    env:
      title: Environment variables
      description: Environment of the flow.
      type: object
      additionalProperties:
        anyOf: [{type: string}, {type: "null"}]
    labels:
      title: Labels
      description: Labels of Job and pod.
      type: object
      additionalProperties: {type: string}
    annotations:
      title: Annotations
      description: Annotations of Job and pod.
      type: object
      additionalProperties: {type: string}
    command:
      title: Command
      description: Command that runs the flow; Prefect's own command when empty.
      type: string
      {{- with $s.command }}
      default: {{ . | quote }}
      {{- end }}
    image:
      title: Image
      description: Image of the flow's container.
      type: string
      default: {from_env: {{ include "prefect-hamilton.flows.imageVariable" . }}}
    image_pull_policy:
      title: Image pull policy
      description: When the image is pulled.
      type: string
      enum: [IfNotPresent, Always, Never]
      default: {{ $root.Values.global.imagePullPolicy | toYaml }}
    service_account_name:
      title: Service account
      description: "Identity of the pod: {{ include "prefect-hamilton.flows.serviceAccounts" . | replace "," ", " }}."
      type: string
      default: {{ include "prefect-hamilton.flows.serviceAccountName" . | toYaml }}
    {{- $quantities := dict
      "cpu_request" $requests.cpu
      "cpu_limit" $limits.cpu
      "memory_request" $requests.memory
      "memory_limit" $limits.memory }}
    {{- range $name, $value := $quantities }}
    {{ $name }}:
      title: {{ $name | replace "_" " " | replace "cpu" "CPU" | replace "memory" "Memory" }}
      description: A quantity of Kubernetes, such as {{ contains "cpu" $name | ternary "500m" "512Mi" }}.
      type: string
      {{- with $value }}
      default: {{ . | toString | quote }}
      {{- end }}
    {{- end }}
    active_deadline_seconds:
      title: Deadline
      description: The number of seconds after which the pod is ended.
      type: integer
      {{- with $s.activeDeadlineSeconds }}
      default: {{ . | toYaml }}
      {{- end }}
    finished_job_ttl:
      title: Time to keep a finished Job
      description: The number of seconds after which a finished Job is deleted.
      type: integer
      default: {{ $s.ttlSecondsAfterFinished | toYaml }}
    node_selector:
      title: Node selector
      description: Labels that a node must have.
      type: object
      additionalProperties: {type: string}
      {{- with $s.nodeSelector }}
      default:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    {{- include "prefect-hamilton.flows.podVariables" $s | nindent 4 }}
job_configuration:
  name: "{{ "{{ name }}" }}"
  command: "{{ "{{ command }}" }}"
  env: "{{ "{{ env }}" }}"
  labels: "{{ "{{ labels }}" }}"
  annotations: "{{ "{{ annotations }}" }}"
  namespace: {from_env: {{ include "prefect-hamilton.flows.namespaceVariable" . }}}
  {{- include "prefect-hamilton.flows.additions" . | trim | nindent 2 }}
  {{- with $s.podTemplate }}
  pod_template:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  job_manifest:
    apiVersion: batch/v1
    kind: Job
    metadata:
      namespace: {from_env: {{ include "prefect-hamilton.flows.namespaceVariable" . }}}
      generateName: "{{ "{{ name }}" }}-"
      labels:
        {{- toYaml $labels | nindent 8 }}
    spec:
      # Prefect reschedules a flow run whose pod was terminated, so Kubernetes must not retry it.
      backoffLimit: 0
      # A pod that was ended while the Prefect API was unavailable says so by this code.
      podFailurePolicy:
        rules:
          - action: FailJob
            onExitCodes: {containerName: prefect-job, operator: In, values: [75]}
      activeDeadlineSeconds: "{{ "{{ active_deadline_seconds }}" }}"
      ttlSecondsAfterFinished: "{{ "{{ finished_job_ttl }}" }}"
      template:
        metadata:
          labels:
            {{- toYaml $labels | nindent 12 }}
          {{- with $s.podAnnotations }}
          annotations:
            {{- toYaml . | nindent 12 }}
          {{- end }}
        spec:
          # Kubernetes ignores these two in a pod; Prefect's worker refuses a Job without them.
          parallelism: 1
          completions: 1
          restartPolicy: Never
          serviceAccountName: "{{ "{{ service_account_name }}" }}"
          automountServiceAccountToken: false
          enableServiceLinks: false
          securityContext:
            {{- include "prefect-hamilton.podSecurityContext" (dict
              "user" 1001
              "own" $s.podSecurityContext) | nindent 12 }}
          {{- with $s.terminationGracePeriodSeconds }}
          terminationGracePeriodSeconds: {{ int . }}
          {{- end }}
          {{- with $root.Values.global.imagePullSecrets }}
          imagePullSecrets:
            {{- range . }}
            - name: {{ . | toYaml }}
            {{- end }}
          {{- end }}
          nodeSelector: "{{ "{{ node_selector }}" }}"
          affinity: "{{ "{{ affinity }}" }}"
          tolerations: "{{ "{{ tolerations }}" }}"
          priorityClassName: "{{ "{{ priority_class_name }}" }}"
          {{- with $s.topologySpreadConstraints }}
          topologySpreadConstraints:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          runtimeClassName: "{{ "{{ runtime_class_name }}" }}"
          {{- with include "prefect-hamilton.placement" (omit $s "runtimeClassName") }}
          {{- trim . | nindent 10 }}
          {{- end }}
          {{- if or $s.sidecars $s.initContainers }}
          initContainers:
            {{- range $s.sidecars }}
            {{- list (merge (dict "restartPolicy" "Always") .) | toYaml | nindent 12 }}
            {{- end }}
            {{- with $s.initContainers }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- end }}
          containers:
            - name: prefect-job
              image: "{{ "{{ image }}" }}"
              imagePullPolicy: "{{ "{{ image_pull_policy }}" }}"
              args: "{{ "{{ command }}" }}"
              # The variable `env` is merged over it.
              {{- include "prefect-hamilton.env" (dict
                "own" (include "prefect-hamilton.flows.env" .)
                "settings" $s) | nindent 14 }}
              resources:
                requests:
                  cpu: "{{ "{{ cpu_request }}" }}"
                  memory: "{{ "{{ memory_request }}" }}"
                  {{- with omit $requests "cpu" "memory" }}
                  {{- toYaml . | nindent 18 }}
                  {{- end }}
                limits:
                  cpu: "{{ "{{ cpu_limit }}" }}"
                  memory: "{{ "{{ memory_limit }}" }}"
                  {{- with omit $limits "cpu" "memory" }}
                  {{- toYaml . | nindent 18 }}
                  {{- end }}
              securityContext:
                {{- include "prefect-hamilton.securityContext" (dict "own" $s.securityContext) | nindent 16 }}
              volumeMounts:
                - {name: tmp, mountPath: /tmp}
                {{- if $sshSecret }}
                - {name: git-credential, mountPath: /git-credential, readOnly: true}
                {{- end }}
                {{- if $results.existingClaim }}
                - {name: results, mountPath: /results}
                {{- end }}
                {{- with $s.volumeMounts }}
                {{- toYaml . | nindent 16 }}
                {{- end }}
          volumes:
            - name: tmp
              emptyDir: {}
            {{- if $sshSecret }}
            - name: git-credential
              secret:
                secretName: {{ $sshSecret | toYaml }}
                defaultMode: 0440
            {{- end }}
            {{- with $results.existingClaim }}
            - name: results
              persistentVolumeClaim:
                claimName: {{ . | toYaml }}
            {{- end }}
            {{- with $s.volumes }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
{{- end }}
