{{/* A pod of the cluster: called with (dict "root" $ "image" IMAGE "resources" RESOURCES "scratchGiB" N). */}}
{{- define "hashlight-job.template" -}}
{{- $values := .root.Values }}
metadata:
  labels:
    app.kubernetes.io/name: {{ .root.Chart.Name }}
    app.kubernetes.io/instance: {{ .root.Release.Name }}
spec:
  {{- with $values.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: ray
      image: {{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $values.images.tag | default .root.Chart.AppVersion }}{{ end }}
      imagePullPolicy: {{ $values.images.pullPolicy }}
      env:
        - {name: TMPDIR, value: /scratch}
        {{- range $name, $value := $values.storage.env }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with $values.storage.secretName }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: scratch, mountPath: /scratch}
        - {name: scratch, mountPath: /var/cache/hashlight, subPath: cache}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: scratch
      emptyDir: {sizeLimit: {{ .scratchGiB }}Gi}
    - name: tmp
      emptyDir: {}
{{- end }}
