# What a demo application runs on: the C library that it was linked against, and curl.
ARG ROOTFS
FROM $ROOTFS
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin app
ENV LANG=C.UTF-8
USER app
CMD ["bash"]
