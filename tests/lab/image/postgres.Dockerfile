# PostgreSQL as the official image presents it: same environment variables, paths, uid, signal, first start.
ARG ROOTFS
FROM $ROOTFS
ARG MAJOR
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
# Debian's /usr/bin wrappers are passed by: they start perl for every psql.
ENV PG_MAJOR=$MAJOR \
    PATH=/usr/lib/postgresql/$MAJOR/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=en_US.utf8 \
    PGDATA=/var/lib/postgresql/data
RUN set -eu; \
    chmod 755 /usr/local/bin/docker-entrypoint.sh; \
    ln -s /usr/local/bin/docker-entrypoint.sh /; \
    sed -i "s/^#\?listen_addresses = .*/listen_addresses = '*'/" /usr/share/postgresql/$MAJOR/postgresql.conf.sample; \
    grep -qxF "listen_addresses = '*'" /usr/share/postgresql/$MAJOR/postgresql.conf.sample; \
    mkdir -p /docker-entrypoint-initdb.d; \
    install -d -o postgres -g postgres -m 3777 /var/run/postgresql; \
    install -d -o postgres -g postgres -m 1777 /var/lib/postgresql /var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
EXPOSE 5432
# SIGTERM would wait for every client to leave ("smart" shutdown); SIGINT is "fast".
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
