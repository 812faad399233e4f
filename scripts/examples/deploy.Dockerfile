# The deploy image: torch, diffusers, the program and its graphs; no compiler. aot.lock, in the folder that this is built from, pins which
# artifacts, by digest; it is kept in version control and made with: aot lock pixart-alpha --from hf://acme/artifacts --gpu h200
#   docker build -f scripts/examples/deploy.Dockerfile -t me/server .
FROM python:3.11-slim-bookworm

RUN --mount=type=bind,target=/src,rw pip install --no-cache-dir /src

# the user that serves pulls: a store is its owner's alone
RUN install -d -o 65534 -g 65534 -m 700 /opt/aot
USER 65534

# the graphs, a layer of some megabytes that changes when the lock does; a private repository: --secret id=hf,env=HF_TOKEN
ENV AOT_HOME=/opt/aot AOT_LOCK=/opt/aot.lock HF_HOME=/tmp/hf
COPY aot.lock /opt/aot.lock
RUN --mount=type=secret,id=hf,env=HF_TOKEN,required=false aot pull --gpu h200

COPY serve.py /opt/serve.py
ENV NEXFORT_GRAPH_CACHE=1
# ends with 10, before the first request is taken, if anything would compile here
CMD ["aot", "run", "--strict", "--", "python", "/opt/serve.py"]
