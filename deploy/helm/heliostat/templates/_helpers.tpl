{{- define "heliostat.name" -}}
{{- if contains "heliostat" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-heliostat" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "heliostat.selector" -}}
app.kubernetes.io/name: heliostat
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "heliostat.labels" -}}
{{ include "heliostat.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "heliostat.secret" -}}
{{ .Values.existingSecret | default (include "heliostat.name" .) }}
{{- end }}

{{- /* A value as TOML: a map as an inline table, anything else in its JSON form. */ -}}
{{- define "heliostat.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }},{{ end }} {{ $key | toJson }} = {{ include "heliostat.toml" (get $ $key) }}{{ end }} }
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{- define "heliostat.config" -}}
{{ .Values.config }}
{{- range .Values.upstreams }}

[[upstream]]
{{- range $key, $value := . }}
{{ $key | toJson }} = {{ include "heliostat.toml" $value }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The most memory that a pod takes, in MiB: docs/protection.md. */ -}}
{{- define "heliostat.memory" -}}
{{- $cache := int .Values.cache.memory -}}
{{- add (div (mul $cache 13) 10) (max 64 (div $cache 4)) 64 -}}
{{- end }}

{{- /* The resources of a pod. A limit that is set counts. */ -}}
{{- define "heliostat.resources" -}}
{{- $limits := dict "memory" (printf "%sMi" (include "heliostat.memory" .)) -}}
{{- toYaml (merge (deepCopy .Values.resources) (dict "limits" $limits)) }}
{{- end }}

{{- /* A probe, over HTTPS if TLS is served. */ -}}
{{- define "heliostat.probe" -}}
{{- $root := index . 0 }}{{ $probe := deepCopy (index . 1) }}
{{- if and $root.Values.tls.secretName $probe.httpGet }}{{ $_ := set $probe.httpGet "scheme" "HTTPS" }}{{ end }}
{{- toYaml $probe }}
{{- end }}
