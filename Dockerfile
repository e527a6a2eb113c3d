# An image that trains: wmtp with everything from the lock, and a user who is not root.
#   docker build -t wmtp:0.1.0 .
#   docker run --gpus all --shm-size 16g -v "$PWD/runs:/runs" wmtp:0.1.0 wmtp doctor
# Never built as it stands: there was no container engine where it was written. Before you rely on it, replace the tag by
# the digest that you tested (docker inspect --format '{{index .RepoDigests 0}}').
#
# PyPI's torch for Linux brings CUDA's libraries along, so the image needs none; the driver is the host's.
FROM python:3.11.13-slim-bookworm

ENV PATH=/opt/wmtp/.venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
WORKDIR /opt/wmtp

# First what changes seldom: torch alone by pip, as the Makefile does it, the rest from the lock.
COPY requirements.lock ./
RUN python -m venv .venv \
 && .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      "$(grep '^torch==' requirements.lock)" "$(grep '^uv==' requirements.lock)" \
 && .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY recipes ./recipes
RUN .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps .

RUN useradd --uid 1000 --create-home wmtp && mkdir -p /runs && chown wmtp:wmtp /runs
USER wmtp
ENV WMTP_CACHE=/runs/cache
VOLUME /runs

# Programs that models write are run in a box that needs user namespaces; many container engines forbid them. `wmtp doctor`
# says what there is, and without a box evaluation refuses to run programs.
CMD ["wmtp", "doctor"]
