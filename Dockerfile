# The server, without PyTorch. docs/deploy.md says how to build and run it.

FROM debian:trixie-slim AS dependencies
ARG EXTRAS=cpu,hub,json,serve
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3-pip python3-venv
RUN python3 -m venv --without-pip /opt/onnx-vlm
WORKDIR /source
COPY pyproject.toml constraints.txt ./
# What the project needs, without the project: a change of its code leaves this large layer as it is.
RUN python3 -c 'import sys, tomllib; \
    project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    extras = [project["optional-dependencies"][name] for name in sys.argv[1].split(",")]; \
    print(*project["dependencies"], *sum(extras, []), sep="\n")' "$EXTRAS" > requirements.txt
RUN python3 -m pip --python /opt/onnx-vlm/bin/python install --no-cache-dir --constraint constraints.txt \
    --requirement requirements.txt

FROM dependencies AS package
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
RUN python3 -m pip --python /opt/onnx-vlm/bin/python install --no-deps --root /package /wheels/*.whl

FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && install --directory --owner 65532 --group 65532 /cache
COPY --from=dependencies /opt/onnx-vlm /opt/onnx-vlm
COPY --from=package /package /
ENV HF_HOME=/cache
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["/opt/onnx-vlm/bin/python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# This form starts the command as process 1, which gets the SIGTERM of `docker stop` and drains.
ENTRYPOINT ["/opt/onnx-vlm/bin/onnx-vlm", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/bundle"]
