# Builds all images: `docker buildx bake` for this machine (add --load or --push).
# For a registry: `PLATFORMS=linux/amd64,linux/arm64 REGISTRY=ghcr.io/me docker buildx bake --push`.

variable "REGISTRY" { default = "" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "" }
variable "SOURCE" { default = "" }
# Comma-separated; if empty, the platform of this machine.
variable "PLATFORMS" { default = "" }
variable "BASE_IMAGE" { default = "python:3.13-slim" }
# URL of the package index; if empty, pypi.org. Provide its password in a netrc file, never here:
# `docker buildx bake --set '*.secrets=id=netrc,src=netrc'`.
variable "INDEX" { default = "" }

group "default" {
  targets = ["prefect", "flows", "flows-build", "example-flows", "hamilton-ui"]
}

target "image" {
  name = image.name
  matrix = {
    image = [
      { name = "prefect", does = "Prefect server, Kubernetes worker and bootstrap" },
      { name = "flows", does = "Runs one Prefect flow run with Hamilton dataflows" },
      { name = "flows-build", does = "Builds flows images with additional packages" },
      { name = "example-flows", does = "Runs one run of the example flows" },
      { name = "hamilton-ui", does = "Hamilton UI and its tracking server" },
    ]
  }
  context    = "."
  dockerfile = "images/Dockerfile"
  target     = image.name
  platforms  = PLATFORMS == "" ? [] : split(",", PLATFORMS)
  tags       = ["${REGISTRY == "" ? "" : "${REGISTRY}/"}prefect-hamilton/${image.name}:${VERSION}"]
  args = {
    BASE_IMAGE       = BASE_IMAGE
    PIP_INDEX_URL    = INDEX == "" ? null : INDEX
    UV_DEFAULT_INDEX = INDEX == "" ? null : INDEX
  }
  labels = {
    "org.opencontainers.image.title"       = "prefect-hamilton/${image.name}"
    "org.opencontainers.image.description" = image.does
    "org.opencontainers.image.licenses"    = "Apache-2.0"
    "org.opencontainers.image.version"     = VERSION
    "org.opencontainers.image.revision"    = REVISION
    "org.opencontainers.image.source"      = SOURCE
  }
}
