# docker build --tag jaxgen .
# docker build --tag jaxgen:cuda --build-arg EXTRAS=cuda .     for GPUs of NVIDIA; docker run then needs --gpus all
#
# docker run --rm jaxgen sample --run pretrained:shakespeare
# docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" jaxgen train --data book.txt

FROM python:3.11-slim AS build
# Extras of the package, with commas between them.
ARG EXTRAS=
WORKDIR /source
COPY constraints.txt LICENSE pyproject.toml README.md ./
COPY jaxgen jaxgen
RUN python -m venv /opt/jaxgen && \
    /opt/jaxgen/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.11-slim
COPY --from=build /opt/jaxgen /opt/jaxgen
ENV PATH=/opt/jaxgen/bin:$PATH
RUN useradd --uid 1000 --create-home jaxgen && install --directory --owner=jaxgen --group=jaxgen /work
USER 1000
WORKDIR /work
ENTRYPOINT ["jaxgen"]
CMD ["--help"]
