# nginx as the official image presents it: configuration in nginx.conf and conf.d, logs on stdout and stderr.
ARG ROOTFS
FROM $ROOTFS
RUN set -eu; \
    groupadd --system nginx; \
    useradd --system --gid nginx --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin nginx; \
    rm -rf /etc/nginx/sites-enabled /etc/nginx/sites-available /etc/nginx/modules-enabled /etc/nginx/conf.d; \
    mkdir -p /etc/nginx/conf.d /usr/share/nginx/html; \
    ln -sf /dev/stdout /var/log/nginx/access.log; \
    ln -sf /dev/stderr /var/log/nginx/error.log
COPY nginx.conf /etc/nginx/nginx.conf
COPY nginx-default.conf /etc/nginx/conf.d/default.conf
ENV LANG=C.UTF-8
EXPOSE 80
# SIGTERM drops the requests under way; SIGQUIT finishes them.
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
