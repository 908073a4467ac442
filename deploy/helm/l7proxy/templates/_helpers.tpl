{{- define "l7proxy.name" -}}
{{- if contains "l7proxy" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-l7proxy" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "l7proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "l7proxy.selector" -}}
app.kubernetes.io/name: l7proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "l7proxy.labels" -}}
{{ include "l7proxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Digest of those of the settings that need new pods: the others are taken over by the running ones. */}}
{{- define "l7proxy.restartSettings" -}}
{{- $settings := deepCopy (index . 1) }}
{{- range (index . 0).Files.Get "files/live-settings.json" | fromJsonArray }}{{ $_ := unset $settings . }}{{ end }}
{{- $settings | toJson | sha256sum | trunc 16 }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "l7proxy.pod" -}}
enableServiceLinks: false
priorityClassName: {{ .Values.priorityClassName }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
nodeSelector: {{- toYaml .Values.nodeSelector | nindent 2 }}
tolerations: {{- toYaml .Values.tolerations | nindent 2 }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "l7proxy.podSecurity" -}}
seccompProfile: {type: RuntimeDefault}
{{- with .Values.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Root with nothing but the named capabilities. Kubernetes gives capabilities to root only (no ambient set), and the
runtime's default AppArmor and seccomp profiles stay on.
*/}}
{{- define "l7proxy.rootWith" -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  add: {{- toYaml . | nindent 4 }}
{{- end }}

{{- define "l7proxy.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "l7proxy.apiServer" -}}
{{- with .Values.apiServer.host }}
env:
  - {name: KUBERNETES_SERVICE_HOST, value: {{ . | quote }}}
  - {name: KUBERNETES_SERVICE_PORT, value: {{ $.Values.apiServer.port | quote }}}
{{- end }}
{{- end }}
