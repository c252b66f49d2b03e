{{- define "hashlight.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end }}
{{- end }}

{{/* Labels that select pods: called with (dict "root" $ "component" NAME), and "group" N for shard servers. */}}
{{- define "hashlight.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- if .group }}
hashlight/group: {{ .group | quote }}
{{- end }}
{{- end }}

{{- define "hashlight.labels" -}}
{{ include "hashlight.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* Called with (dict "root" $ "image" IMAGE). */}}
{{- define "hashlight.image" -}}
{{- $images := .root.Values.images -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $images.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "hashlight.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hashlight.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What every pod has: its account, and how it reaches the bucket. */}}
{{- define "hashlight.pod" -}}
serviceAccountName: {{ include "hashlight.fullname" . }}
automountServiceAccountToken: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  {{- include "hashlight.podSecurity" . | nindent 2 }}
{{- end }}

{{- define "hashlight.storageEnv" -}}
{{- range $name, $value := .Values.storage.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "hashlight.storageEnvFrom" -}}
{{- with .Values.storage.secretName }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "hashlight.tokenEnv" -}}
- name: HASHLIGHT_SHARD_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.secretName }}, key: shard-token}
{{- end }}

{{- define "hashlight.shardTls" -}}
{{- if .Values.tls.shards }}
- --shard-tls-cert=/etc/hashlight/shard-tls/tls.crt
- --shard-tls-key=/etc/hashlight/shard-tls/tls.key
- --shard-tls-authority=/etc/hashlight/shard-tls/ca.crt
{{- end }}
{{- end }}

{{/* Kernels are compiled, and a first version fetched, before a server is ready: that may take minutes. */}}
{{- define "hashlight.probes" -}}
startupProbe:
  httpGet: {path: /health/live, port: metrics}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /health/live, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /health/ready, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* The time to drain, and to finish what is in progress. */}}
{{- define "hashlight.grace" -}}
{{ add .Values.drainDelaySeconds 60 }}
{{- end }}
