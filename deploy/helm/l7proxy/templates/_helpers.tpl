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

{{/* Of an image by its values: what is not ours has no default tag. */}}
{{- define "l7proxy.otherImage" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{/* The name of the cluster in flows and certificates. */}}
{{- define "l7proxy.cluster" -}}
{{ .Values.settings.cluster | default "default" }}
{{- end }}

{{/* "true" if Relay listens on the network, with mutual TLS. */}}
{{- define "l7proxy.relayTls" -}}
{{- if or .Values.hubble.relay.tls.enabled .Values.hubble.ui.enabled }}true{{ end }}
{{- end }}

{{/*
The certificates that are needed, as JSON: Secret and DNS name. The names are those that Relay, the UI and `hubble`
verify. One wildcard stands for all nodes and for the Service hubble-peer.
*/}}
{{- define "l7proxy.hubbleCertificates" -}}
{{- $secrets := .Values.hubble.certificates.secrets }}
{{- $server := printf "*.%s.hubble-grpc.cilium.io" (include "l7proxy.cluster" . | replace "." "-") }}
{{- $found := list (dict "secret" $secrets.server "name" $server) }}
{{- if .Values.hubble.relay.enabled }}
{{- $found = append $found (dict "secret" $secrets.relayClient "name" "*.hubble-relay.cilium.io") }}
{{- if include "l7proxy.relayTls" . }}
{{- $found = append $found (dict "secret" $secrets.relayServer "name" "*.hubble-relay.cilium.io") }}
{{- end }}
{{- end }}
{{- if .Values.hubble.ui.enabled }}
{{- $found = append $found (dict "secret" $secrets.uiClient "name" "*.hubble-ui.cilium.io") }}
{{- end }}
{{- $found | toJson }}
{{- end }}

{{- define "l7proxy.relayConfig" -}}
{{- $tls := include "l7proxy.relayTls" . -}}
cluster-name: {{ include "l7proxy.cluster" . | quote }}
peer-service: hubble-peer.{{ .Release.Namespace }}.svc:443
listen-address: {{ if $tls }}":4245"{{ else }}"127.0.0.1:4245"{{ end }}
health-listen-address: ":4222"
gops: false
retry-timeout: 5s
tls-hubble-client-cert-file: /var/lib/hubble-relay/client/tls.crt
tls-hubble-client-key-file: /var/lib/hubble-relay/client/tls.key
tls-hubble-server-ca-files: [/var/lib/hubble-relay/client/ca.crt]
{{- if $tls }}
tls-relay-server-cert-file: /var/lib/hubble-relay/server/tls.crt
tls-relay-server-key-file: /var/lib/hubble-relay/server/tls.key
tls-relay-client-ca-files: [/var/lib/hubble-relay/server/ca.crt]
{{- else }}
disable-server-tls: true
{{- end }}
{{- end }}
