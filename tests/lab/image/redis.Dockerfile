# Redis as the official image presents it: data in /data, uid 999, unprotected inside its network.
ARG ROOTFS
FROM $ROOTFS
COPY redis-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
# Both official images give their service uid 999; here they share a root file system, so PostgreSQL's user goes.
RUN set -eu; \
    chmod 755 /usr/local/bin/docker-entrypoint.sh; \
    userdel postgres; \
    if getent group postgres >/dev/null; then groupdel postgres; fi; \
    groupmod -g 999 redis; \
    usermod -u 999 -g 999 -d /data redis; \
    rm -rf /var/lib/redis /var/log/redis /etc/redis; \
    install -d -o redis -g redis -m 755 /data
ENV LANG=C.UTF-8
VOLUME /data
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["redis-server"]
