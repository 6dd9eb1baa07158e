# All images: `docker buildx bake` for one's own machine (add --load or --push).
# For a registry: `PLATFORMS=linux/amd64,linux/arm64 REGISTRY=ghcr.io/me docker buildx bake --push`.

variable "REGISTRY" { default = "" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "" }
variable "SOURCE" { default = "" }
# Comma-separated; empty builds for the machine that builds.
variable "PLATFORMS" { default = "" }
variable "BASE_IMAGE" { default = "python:3.13-slim" }
# Where packages come from; empty means pypi.org. A password goes into a netrc file, never here:
# `docker buildx bake --set '*.secrets=id=netrc,src=netrc'`.
variable "INDEX" { default = "" }

group "default" {
  targets = ["prefect", "flows", "hamilton-ui"]
}

target "image" {
  name = item
  matrix = {
    item = ["prefect", "flows", "hamilton-ui"]
  }
  context    = "."
  dockerfile = "images/Dockerfile"
  target     = item
  platforms  = PLATFORMS == "" ? [] : split(",", PLATFORMS)
  tags       = ["${REGISTRY == "" ? "" : "${REGISTRY}/"}prefect-hamilton/${item}:${VERSION}"]
  args = {
    BASE_IMAGE       = BASE_IMAGE
    VERSION          = VERSION
    REVISION         = REVISION
    SOURCE           = SOURCE
    PIP_INDEX_URL    = INDEX == "" ? null : INDEX
    UV_DEFAULT_INDEX = INDEX == "" ? null : INDEX
  }
}
