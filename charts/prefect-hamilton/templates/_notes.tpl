{{/* Command that prints a key of a Secret. Takes root, secret and key. */}}
{{- define "prefect-hamilton.notes.readSecret" -}}
{{- $read := printf "{{index .data %q | base64decode}}" .key -}}
kubectl -n {{ .root.Release.Namespace }} get secret {{ .secret }} -o go-template='{{ $read }}{{ `{{"\n"}}` }}'
{{- end }}

{{/* The namespaces that work pools have of their own, as a YAML list. */}}
{{- define "prefect-hamilton.notes.namespaces" -}}
{{- $found := keys (include "prefect-hamilton.flows.poolsByNamespace" . | fromYaml) | sortAlpha }}
{{- without $found .Release.Namespace (include "prefect-hamilton.flows.namespace" .) | toYaml }}
{{- end }}

{{/* What an administrator should know about these values, as a YAML list of sentences. */}}
{{- define "prefect-hamilton.notes.warnings" -}}
{{- $warnings := list }}
{{- if eq .Values.auth.type "none" }}
{{- $warnings = append $warnings "auth.type is none: anyone who can reach the Prefect API has full access." }}
{{- end }}
{{- if and .Values.postgres.enabled (include "prefect-hamilton.postgres.isUsed" .) }}
{{- $warnings = append $warnings (cat
  "postgres.enabled: the bundled PostgreSQL has no replicas and no backups; use an external one"
  "(postgres.host) in production.") }}
{{- end }}
{{- if and .Values.server.enabled .Values.server.sqlite.enabled }}
{{- $warnings = append $warnings
  "server.sqlite.enabled: there can be one server only, with a short outage at each upgrade." }}
{{- end }}
{{- if not .Values.networkPolicy.enabled }}
{{- $warnings = append $warnings
  "networkPolicy.enabled is false: every pod of the cluster can reach the databases." }}
{{- end }}
{{- if .Values.gitServer.enabled }}
{{- $warnings = append $warnings
  "gitServer.enabled is for development: set flows.repository to your Git repository in production." }}
{{- end }}
{{- $urls := dict
  "Prefect UI" (include "prefect-hamilton.server.url" .)
  "Hamilton UI" (include "prefect-hamilton.publicUrl" (dict "root" . "component" .Values.hamiltonUi)) }}
{{- range $ui, $url := $urls }}
{{- if and (hasPrefix "http://" $url) (not (regexMatch "^http://(localhost|127\\.0\\.0\\.1)([:/]|$)" $url)) }}
{{- $warnings = append $warnings (printf (cat
  "The %s is served over plain HTTP: anyone on the network path can read passwords. Set ingress.tls or"
  "gateway.tls.") $ui) }}
{{- end }}
{{- end }}
{{- range $name, $service := dict "server" .Values.server.service "hamiltonUi" .Values.hamiltonUi.service }}
{{- if eq $service.type "LoadBalancer" }}
{{- $warnings = append $warnings (printf
  "%s.service.type is LoadBalancer: the UI is open to the network over plain HTTP." $name) }}
{{- end }}
{{- end }}
{{- $short := dict "url" (.Values.flows.repository | default "") "gitCredential" .Values.flows.gitCredential }}
{{- $repositories := dict "flows.repository" $short }}
{{- range $name, $repository := .Values.flows.repositories }}
{{- $_ := set $repositories (printf "flows.repositories.%s.url" $name) $repository }}
{{- end }}
{{- range $value, $repository := $repositories }}
{{- if and (hasPrefix "http://" $repository.url) ($repository.gitCredential | default dict).existingSecret }}
{{- $warnings = append $warnings (printf
  "%s is an http:// address, to which Prefect sends no token: use https." $value) }}
{{- end }}
{{- end }}
{{- toYaml $warnings }}
{{- end }}
