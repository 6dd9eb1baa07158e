{{/* Whether requests go through the proxy of `global.proxy`. */}}
{{- define "prefect-hamilton.proxy.isUsed" -}}
{{- with .Values.global.proxy }}
{{- if or .http .https .existingSecret }}true{{ end }}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.caBundle.isUsed" -}}
{{- with .Values.global.caBundle }}
{{- if or .configMap .secret }}true{{ end }}
{{- end }}
{{- end }}

{{/*
What pods reach without the proxy: themselves, the Kubernetes API, whose address the kubelet fills in, and
the Services of this release under the names that pods use.
*/}}
{{- define "prefect-hamilton.proxy.exceptions" -}}
{{- $hosts := list "localhost" "127.0.0.1" "::1" "$(KUBERNETES_SERVICE_HOST)" ".svc" ".cluster.local" }}
{{- $services := list
  (include "prefect-hamilton.server.name" .)
  (include "prefect-hamilton.hamilton-ui.name" .)
  (include "prefect-hamilton.hamilton-ui.keptName" .) }}
{{- range $services }}
{{- $hosts = concat $hosts (list . (include "prefect-hamilton.serviceHost" (dict "root" $ "name" .))) }}
{{- end }}
{{- concat $hosts (.Values.global.proxy.noProxy | default list) | uniq | join "," }}
{{- end }}

{{/* Environment of every pod that sends requests: programs differ in the case of the names that they read. */}}
{{- define "prefect-hamilton.company.env" -}}
{{- $proxy := .Values.global.proxy }}
{{- range $scheme := list "http" "https" }}
{{- $name := printf "%s_proxy" $scheme }}
{{- if $proxy.existingSecret }}
{{- $reference := dict "name" $proxy.existingSecret "key" (printf "%s-proxy" $scheme) "optional" true }}
{{ upper $name }}: {{ dict "secretKeyRef" $reference | toJson }}
{{ $name }}: {{ dict "secretKeyRef" $reference | toJson }}
{{- else if get $proxy $scheme }}
{{ upper $name }}: {{ get $proxy $scheme | quote }}
{{ $name }}: {{ get $proxy $scheme | quote }}
{{- end }}
{{- end }}
{{- if include "prefect-hamilton.proxy.isUsed" . }}
NO_PROXY: {{ include "prefect-hamilton.proxy.exceptions" . | quote }}
no_proxy: {{ include "prefect-hamilton.proxy.exceptions" . | quote }}
{{- end }}
{{- if include "prefect-hamilton.caBundle.isUsed" . }}
{{- /* In this order: Python's ssl, with httpx, aiohttp and libpq; Prefect's client; requests; curl; git; boto3. */}}
{{- range list "SSL_CERT_FILE" "PREFECT_API_SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "CURL_CA_BUNDLE" "GIT_SSL_CAINFO" "AWS_CA_BUNDLE" }}
{{ . }}: /ca-bundle/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{/* Mount of the bundle in a container that does not have the mounts of the settings. */}}
{{- define "prefect-hamilton.caBundle.mount" -}}
{{- if include "prefect-hamilton.caBundle.isUsed" . -}}
- {name: ca-bundle, mountPath: /ca-bundle, readOnly: true}
{{- end }}
{{- end }}

{{- define "prefect-hamilton.caBundle.volume" -}}
{{- $bundle := .Values.global.caBundle -}}
{{- $items := list (dict "key" $bundle.key "path" "ca.crt") -}}
name: ca-bundle
{{- if $bundle.secret }}
secret: {{ dict "secretName" $bundle.secret "items" $items | toJson }}
{{- else }}
configMap: {{ dict "name" $bundle.configMap "items" $items | toJson }}
{{- end }}
{{- end }}

{{/*
A pod's settings with the proxy and the bundle, as YAML. Variables that the settings name, even with null,
win. Takes root and settings.
*/}}
{{- define "prefect-hamilton.company.settings" -}}
{{- $settings := .settings }}
{{- $env := deepCopy ($settings.env | default dict) }}
{{- range $name, $value := include "prefect-hamilton.company.env" .root | fromYaml }}
{{- if not (hasKey $env $name) }}
{{- $_ := set $env $name $value }}
{{- end }}
{{- end }}
{{- $_ := set $settings "env" $env }}
{{- if include "prefect-hamilton.caBundle.isUsed" .root }}
{{- $mount := include "prefect-hamilton.caBundle.mount" .root | fromYamlArray }}
{{- $volume := include "prefect-hamilton.caBundle.volume" .root | fromYaml }}
{{- $_ := set $settings "volumeMounts" (concat ($settings.volumeMounts | default list) $mount) }}
{{- $_ := set $settings "volumes" (append ($settings.volumes | default list) $volume) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/* The proxy, at any address: its port. */}}
{{- define "prefect-hamilton.network.proxy" -}}
{{- if include "prefect-hamilton.proxy.isUsed" . -}}
{{- $proxy := .Values.global.proxy -}}
{{- $ports := list -}}
{{- range list $proxy.http $proxy.https -}}
{{- if . -}}
{{- $ports = append $ports (include "prefect-hamilton.network.urlPort" . | int) -}}
{{- end -}}
{{- end -}}
{{- if $proxy.existingSecret -}}
{{- $ports = list (int $proxy.port) -}}
{{- end -}}
# The proxy of global.proxy.
- ports:
    {{- range $ports | uniq }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}
