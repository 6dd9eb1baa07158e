{{/*
Job variables by which a deployment adds to its pod. Those with a default replace the setting of the
pool; the others are added to it by the worker. Takes the settings of the pool's flow pods.
*/}}
{{- define "prefect-hamilton.flows.podVariables" -}}
secret_env:
  title: Variables from Secrets
  description: "Environment variables by name, each with a Secret and one of its keys: my-secret/token."
  type: object
  additionalProperties: {type: string, pattern: "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"}
env_from_secrets:
  title: Secrets as environment
  description: Names of Secrets whose keys all become environment variables.
  type: array
  items: {type: string}
env_from_config_maps:
  title: ConfigMaps as environment
  description: Names of ConfigMaps whose keys all become environment variables.
  type: array
  items: {type: string}
secret_files:
  title: Secrets as files
  description: "Folders, each with the name of a Secret whose keys are files there: /etc/api: my-secret."
  type: object
  additionalProperties: {type: string}
config_map_files:
  title: ConfigMaps as files
  description: "Folders, each with the name of a ConfigMap whose keys are files there: /etc/app: my-config."
  type: object
  additionalProperties: {type: string}
volumes:
  title: Volumes
  description: Volumes of Kubernetes, added to those of the pool; one with the same name replaces it.
  type: array
  items:
    type: object
    required: [name]
    properties:
      name: {title: Name, type: string}
volume_mounts:
  title: Volume mounts
  description: Mounts in the flow's container.
  type: array
  items:
    type: object
    required: [name, mountPath]
    properties:
      name: {title: Volume, type: string}
      mountPath: {title: Path, type: string}
      subPath: {title: Path in the volume, type: string}
      readOnly: {title: Read-only, type: boolean}
extra_resources:
  title: Other resources
  description: "Resources besides CPU and memory, as request and limit: nvidia.com/gpu: 1."
  type: object
  additionalProperties:
    anyOf: [{type: string}, {type: integer}]
tolerations:
  title: Tolerations
  description: Taints of nodes that the pod tolerates.
  type: array
  items:
    type: object
    properties:
      key: {title: Key, type: string}
      operator: {title: Operator, type: string, enum: [Exists, Equal, Lt, Gt]}
      value: {title: Value, type: string}
      effect: {title: Effect, type: string, enum: [NoSchedule, PreferNoSchedule, NoExecute]}
      tolerationSeconds: {title: Seconds, type: integer}
  {{- with .tolerations }}
  default:
    {{- toYaml . | nindent 4 }}
  {{- end }}
affinity:
  title: Affinity
  description: Rules of Kubernetes that prefer or require nodes, or other pods to be near.
  type: object
  {{- with .affinity }}
  default:
    {{- toYaml . | nindent 4 }}
  {{- end }}
priority_class_name:
  title: Priority class
  description: PriorityClass of the pod.
  type: string
  {{- with .priorityClassName }}
  default: {{ . | toYaml }}
  {{- end }}
runtime_class_name:
  title: Runtime class
  description: RuntimeClass of the pod, such as one for GPUs or for a sandbox.
  type: string
  {{- with .runtimeClassName }}
  default: {{ . | toYaml }}
  {{- end }}
{{- $containers := dict
  "init_containers" (list "Init containers" "Containers that run one after the other before the flow.")
  "sidecars" (list "Sidecars" "Containers that start before the flow and end after it.") }}
{{- range $name, $texts := $containers }}
{{ $name }}:
  title: {{ index $texts 0 }}
  description: {{ index $texts 1 }}
  type: array
  items:
    type: object
    required: [name, image]
    properties:
      name: {title: Name, type: string}
      image: {title: Image, type: string}
      command: {title: Command, type: array, items: {type: string}}
      args: {title: Arguments, type: array, items: {type: string}}
{{- end }}
{{- end }}

{{/* Fields of the job configuration that the worker merges into the pod. */}}
{{- define "prefect-hamilton.flows.additions" -}}
{{- range list
  "secret_env" "env_from_secrets" "env_from_config_maps" "secret_files" "config_map_files" "volumes"
  "volume_mounts" "extra_resources" "init_containers" "sidecars" }}
{{ . }}: "{{ printf "{{ %s }}" . }}"
{{- end }}
{{- end }}

{{/* Names of the service accounts that a pool's flow pods may have. Takes root and pool. */}}
{{- define "prefect-hamilton.flows.serviceAccounts" -}}
{{- $s := include "prefect-hamilton.flows.settings" . | fromYaml }}
{{- $own := include "prefect-hamilton.flows.serviceAccountName" . }}
{{- $fixed := (($s.podTemplate | default dict).spec | default dict).serviceAccountName | default "" }}
{{- concat (list $own) ($s.allowedServiceAccounts | default list) (list $fixed) | compact | uniq | join "," }}
{{- end }}
