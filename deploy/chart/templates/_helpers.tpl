{{- /* `larder manifests` renders these templates, too: it knows the functions that they use
       (docs/adr/0013-one-set-of-templates.md), and a test compares it with helm. */ -}}

{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "larder.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Not empty for a driver with a pool that all nodes see. */ -}}
{{- define "larder.shared" -}}
{{- range $name, $pool := .pools }}{{ if $pool.shared }}x{{ end }}{{ end }}
{{- end }}

{{- /* Not empty when there is a driver whose controllers run on the nodes. */ -}}
{{- define "larder.anyLocal" -}}
{{- range $key, $driver := .Values.drivers }}{{ if $driver.enabled }}{{ if not (include "larder.shared" $driver) }}x{{ end }}{{ end }}{{ end }}
{{- end }}

{{- /* Not empty when there is a driver whose controllers run in the Deployment. */ -}}
{{- define "larder.anyShared" -}}
{{- range $key, $driver := .Values.drivers }}{{ if $driver.enabled }}{{ include "larder.shared" $driver }}{{ end }}{{ end }}
{{- end }}

{{- /* Not empty when pods may define volumes of a driver themselves. */ -}}
{{- define "larder.anyInline" -}}
{{- range $key, $driver := .Values.drivers }}{{ if $driver.enabled }}{{ if $driver.ephemeral }}x{{ end }}{{ end }}{{ end }}
{{- end }}

{{- /* Nothing but a message where a driver has pools of both kinds: its controllers run either on the
       nodes or in the Deployment. */ -}}
{{- define "larder.checked" -}}
{{- range $key, $driver := .Values.drivers }}
{{- if $driver.enabled }}
{{- if include "larder.shared" $driver }}
{{- range $name, $pool := $driver.pools }}
{{- if not $pool.shared }}
{{- fail (printf "drivers.%s has shared pools, and pool %s is not: make it a driver of its own" $key $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "larder.config.common" -}}
kubeletDir: {{ .Values.kubelet.root | quote }}
stateDir: /run/larder/state
{{- if contains ":" .Values.metrics.address }}
http: {{ printf "[%s]:%v" .Values.metrics.address .Values.metrics.port | quote }}
{{- else }}
http: {{ printf "%s:%v" .Values.metrics.address .Values.metrics.port | quote }}
{{- end }}
log:
  level: {{ .Values.log.level | quote }}
  format: {{ .Values.log.format }}
{{- end }}

{{- define "larder.config.kubernetes" -}}
namespace: {{ .Release.Namespace }}
capacity: {{ .Values.controllers.capacity }}
extraCreateMetadata: {{ .Values.controllers.extraCreateMetadata }}
resizer: {{ .Values.controllers.resizer }}
{{- end }}

{{- define "larder.config.node" -}}
{{ include "larder.config.common" . }}
drivers:
{{- range $key, $driver := .Values.drivers }}
{{- if $driver.enabled }}
  - name: {{ $driver.name }}
    backend: {{ $driver.backend }}
    register: true
    pools:
      {{- toYaml $driver.pools | nindent 6 }}
{{- end }}
{{- end }}
{{- if include "larder.anyLocal" . }}
kubernetes:
  {{- include "larder.config.kubernetes" . | nindent 2 }}
  drivers:
  {{- range $key, $driver := .Values.drivers }}
  {{- if and $driver.enabled (not (include "larder.shared" $driver)) }}
    - {{ $driver.name }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "larder.config.controller" -}}
{{ include "larder.config.common" . }}
drivers:
{{- range $key, $driver := .Values.drivers }}
{{- if and $driver.enabled (include "larder.shared" $driver) }}
  - name: {{ $driver.name }}
    backend: {{ $driver.backend }}
    endpoint: unix:///run/larder/{{ $driver.name }}/csi.sock
    pools:
      {{- toYaml $driver.pools | nindent 6 }}
{{- end }}
{{- end }}
kubernetes:
  {{- include "larder.config.kubernetes" . | nindent 2 }}
{{- end }}

{{- define "larder.env" -}}
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
{{- end }}

{{- define "larder.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: http }
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 8
readinessProbe:
  httpGet: { path: /readyz, port: http }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- /* What provisioning takes, whoever does it. */ -}}
{{- define "larder.rules" -}}
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [storage.k8s.io]
  resources: [storageclasses]
  verbs: [list, watch]
{{- if .Values.controllers.attributesClasses }}
- apiGroups: [storage.k8s.io]
  resources: [volumeattributesclasses]
  verbs: [get, list, watch]
{{- end }}
{{- if .Values.controllers.snapshots }}
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshots]
  verbs: [get, list, patch]
- apiGroups: [snapshot.storage.k8s.io]
  resources: [volumesnapshotcontents]
  verbs: [get]
{{- end }}
{{- if .Values.controllers.resizer }}
- apiGroups: [""]
  resources: [persistentvolumeclaims/status]
  verbs: [patch]
{{- end }}
{{- range $grant := .Values.controllers.secrets }}
{{- if eq $grant.namespace "*" }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
  {{- with $grant.names }}
  resourceNames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
