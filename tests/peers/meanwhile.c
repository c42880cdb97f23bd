/* A Sametime client that uses libmeanwhile, for the tests. It logs in, then executes the steps in its arguments one
 * after the other. It prints a line on stdout for each event.
 *
 *   meanwhile [--socks4 A:P | --socks5 A:P | --connect A:P] ADDRESS PORT NAME PASSWORD STEP...
 *
 * Steps:  say USER TEXT     opens a conversation if there is none, sends TEXT and waits for an answer
 *         wait N            waits until N messages arrived, and answers each with its own text
 *         aware USER        waits until USER is online
 *         sees USER STATUS  waits until USER has the status (a number, or 0 for off line)
 *         status N TEXT     sets the own status
 *         resolve NAME      asks the directory for NAME and waits for the response
 *         idle SECONDS      keeps the session open, with libmeanwhile's keep-alives
 *
 * Exit codes: 0 all steps are done, 1 a step failed, 2 wrong usage. Every wait ends after 20 seconds. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <mw_cipher.h>
#include <mw_common.h>
#include <mw_service.h>
#include <mw_session.h>
#include <mw_srvc_aware.h>
#include <mw_srvc_im.h>
#include <mw_srvc_resolve.h>

#define STEP_TIMEOUT 20

static int fd = -1;
static int heard, answers, on_line, resolved, stopped, answering;
static const char *watched;
static long seen = -1;

static void die(const char *what) {
    printf("failed: %s\n", what);
    exit(1);
}

/* The connection. */

static int write_all(const void *bytes, size_t n) {
    const char *at = bytes;
    while (n > 0) {
        ssize_t put = send(fd, at, n, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return -1;
        at += put;
        n -= (size_t)put;
    }
    return 0;
}

static void read_all(void *bytes, size_t n) {
    char *at = bytes;
    while (n > 0) {
        ssize_t got = recv(fd, at, n, 0);
        if (got <= 0) die("the proxy closed");
        at += got;
        n -= (size_t)got;
    }
}

static struct sockaddr_in address(const char *host, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) {
        fprintf(stderr, "not an IPv4 address: %s\n", host);
        exit(2);
    }
    return to;
}

static void open_tcp(struct sockaddr_in to) {
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("can't connect");
}

static void open_through(const char *kind, char *proxy, const char *host, const char *port) {
    char *colon = strchr(proxy, ':');
    if (!colon) exit(2);
    *colon = 0;
    open_tcp(address(proxy, colon + 1));
    struct sockaddr_in to = address(host, port);
    if (strcmp(kind, "--connect") == 0) {
        char request[256], answer[4096];
        size_t n = 0;
        snprintf(request, sizeof request, "CONNECT %s:%s HTTP/1.0\r\n\r\n", host, port);
        write_all(request, strlen(request));
        while (n + 1 < sizeof answer) {
            read_all(answer + n, 1);
            answer[++n] = 0;
            if (n >= 4 && strcmp(answer + n - 4, "\r\n\r\n") == 0) break;
        }
        if (!strstr(answer, " 200")) die("the proxy refused");
    } else if (strcmp(kind, "--socks5") == 0) {
        unsigned char answer[10], request[10] = {5, 1, 0, 1};
        write_all("\x05\x01\x00", 3);
        read_all(answer, 2);
        memcpy(request + 4, &to.sin_addr, 4);
        memcpy(request + 8, &to.sin_port, 2);
        write_all(request, sizeof request);
        read_all(answer, sizeof answer);
        if (answer[1] != 0) die("the proxy refused");
    } else {
        unsigned char answer[8], request[9] = {4, 1};
        memcpy(request + 2, &to.sin_port, 2);
        memcpy(request + 4, &to.sin_addr, 4);
        write_all(request, sizeof request);
        read_all(answer, sizeof answer);
        if (answer[1] != 0x5a) die("the proxy refused");
    }
}

/* The callbacks of libmeanwhile. */

static int io_write(struct mwSession *s, const guchar *bytes, gsize n) {
    (void)s;
    return write_all(bytes, n);
}

static void io_close(struct mwSession *s) {
    (void)s;
    shutdown(fd, SHUT_WR);
}

static void on_state(struct mwSession *s, enum mwSessionState state, gpointer info) {
    (void)s;
    switch (state) {
    case mwSession_STARTED: printf("logged in\n"); break;
    case mwSession_STOPPING: printf("stopped 0x%08x\n", GPOINTER_TO_UINT(info)); stopped = 1; break;
    default: break;
    }
}

static void on_opened(struct mwConversation *c) { printf("opened %s\n", mwConversation_getTarget(c)->user); }

static void on_closed(struct mwConversation *c, guint32 why) {
    printf("closed %s 0x%08x\n", mwConversation_getTarget(c)->user, why);
}

static void on_message(struct mwConversation *c, enum mwImSendType type, gconstpointer message) {
    if (type != mwImSend_PLAIN) return;
    printf("heard %s: %s\n", mwConversation_getTarget(c)->user, (const char *)message);
    heard++;
    if (answering) mwConversation_send(c, mwImSend_PLAIN, message);
    else answers++;
}

static void on_aware(struct mwAwareList *list, struct mwAwareSnapshot *of) {
    (void)list;
    printf("aware %s %s\n", of->id.user, of->online ? "on line" : "off line");
    if (watched && strcmp(watched, of->id.user) == 0) {
        on_line = of->online;
        seen = of->online ? of->status.status : 0;
    }
}

static void on_attribute(struct mwAwareList *list, struct mwAwareIdBlock *id, struct mwAwareAttribute *a) {
    (void)list, (void)id, (void)a;
}

static void on_own_attribute(struct mwServiceAware *service, struct mwAwareAttribute *a) { (void)service, (void)a; }

static void on_resolved(struct mwServiceResolve *service, guint32 id, guint32 code, GList *results, gpointer data) {
    (void)service, (void)id, (void)data;
    for (; results; results = results->next) {
        struct mwResolveResult *result = results->data;
        printf("resolved %s 0x%08x:", result->name, code | result->code);
        for (GList *m = result->matches; m; m = m->next) printf(" %s", ((struct mwResolveMatch *)m->data)->id);
        printf("\n");
    }
    resolved = 1;
}

/* Processes what the server sends until `*flag` reaches `value`. */
static void until(struct mwSession *s, const int *flag, int value, int seconds, const char *what) {
    time_t end = time(NULL) + seconds;
    time_t alive = time(NULL) + 5;
    while (*flag < value) {
        fflush(stdout);
        if (stopped) die("the session is over");
        if (time(NULL) > end) {
            if (!what) return;
            die(what);
        }
        if (time(NULL) > alive) {
            mwSession_sendKeepalive(s);
            alive = time(NULL) + 5;
        }
        struct pollfd one = {.fd = fd, .events = POLLIN};
        if (poll(&one, 1, 200) <= 0) continue;
        guchar bytes[16384];
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n <= 0) die("the connection was closed");
        mwSession_recv(s, bytes, (gsize)n);
    }
}

static void quiet(const gchar *domain, GLogLevelFlags level, const gchar *text, gpointer data) {
    (void)domain, (void)data;
    if (level & (G_LOG_LEVEL_WARNING | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_ERROR)) printf("warning: %s\n", text);
}

int main(int argc, char **argv) {
    g_log_set_default_handler(quiet, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    char *kind = NULL, *proxy = NULL;
    int at = 1;
    if (argc > 2 && strncmp(argv[1], "--", 2) == 0) {
        kind = argv[1];
        proxy = argv[2];
        at = 3;
    }
    if (argc < at + 4) {
        fprintf(stderr, "usage: see the head of meanwhile.c\n");
        return 2;
    }
    char *host = argv[at], *port = argv[at + 1], *name = argv[at + 2], *password = argv[at + 3];
    if (kind) open_through(kind, proxy, host, port);
    else open_tcp(address(host, port));

    struct mwSessionHandler handler = {.io_write = io_write, .io_close = io_close, .on_stateChange = on_state};
    struct mwImHandler talk = {
        .conversation_opened = on_opened, .conversation_closed = on_closed, .conversation_recv = on_message};
    struct mwAwareHandler own = {.on_attrib = on_own_attribute};
    struct mwAwareListHandler others = {.on_aware = on_aware, .on_attrib = on_attribute};
    struct mwSession *s = mwSession_new(&handler);
    mwSession_setProperty(s, mwSession_AUTH_USER_ID, g_strdup(name), g_free);
    mwSession_setProperty(s, mwSession_AUTH_PASSWORD, g_strdup(password), g_free);
    mwSession_setProperty(s, mwSession_CLIENT_TYPE_ID, GUINT_TO_POINTER(mwLogin_MEANWHILE), NULL);
    mwSession_addCipher(s, mwCipher_new_RC2_40(s));
    mwSession_addCipher(s, mwCipher_new_RC2_128(s));
    struct mwServiceIm *im = mwServiceIm_new(s, &talk);
    struct mwServiceAware *aware = mwServiceAware_new(s, &own);
    struct mwServiceResolve *resolve = mwServiceResolve_new(s);
    mwSession_addService(s, MW_SERVICE(im));
    mwSession_addService(s, MW_SERVICE(aware));
    mwSession_addService(s, MW_SERVICE(resolve));
    mwSession_start(s);
    int started = 0;
    for (time_t end = time(NULL) + STEP_TIMEOUT; !started && time(NULL) <= end;) {
        until(s, &started, 1, 0, NULL);
        started = mwSession_isStarted(s);
    }
    if (!started) die("no log-in");

    for (at += 4; at < argc; at++) {
        char *step = argv[at];
        if (strcmp(step, "say") == 0 && at + 2 < argc) {
            struct mwIdBlock target = {argv[at + 1], NULL};
            struct mwConversation *c = mwServiceIm_getConversation(im, &target);
            if (mwConversation_isClosed(c)) mwConversation_open(c);
            for (time_t end = time(NULL) + STEP_TIMEOUT; !mwConversation_isOpen(c);) {
                int open = 0;
                until(s, &open, 1, 0, NULL);
                if (mwConversation_isClosed(c)) die("the conversation was refused");
                if (time(NULL) > end) die("no conversation");
            }
            int before = answers;
            mwConversation_send(c, mwImSend_PLAIN, argv[at + 2]);
            until(s, &answers, before + 1, STEP_TIMEOUT, "no answer");
            at += 2;
        } else if (strcmp(step, "wait") == 0 && at + 1 < argc) {
            answering = 1;
            printf("waiting\n");
            until(s, &heard, heard + atoi(argv[++at]), STEP_TIMEOUT, "no message");
            answering = 0;
        } else if (strcmp(step, "aware") == 0 && at + 1 < argc) {
            struct mwAwareIdBlock id = {mwAware_USER, argv[at + 1], NULL};
            watched = argv[++at];
            struct mwAwareList *list = mwAwareList_new(aware, &others);
            GList *ids = g_list_append(NULL, &id);
            mwAwareList_addAware(list, ids);
            until(s, &on_line, 1, STEP_TIMEOUT, "not on line");
            on_line = 0;
        } else if (strcmp(step, "sees") == 0 && at + 2 < argc) {
            const char *user = argv[++at];
            long status = strtol(argv[++at], NULL, 0);
            if (!watched || strcmp(watched, user) != 0) {
                struct mwAwareIdBlock id = {mwAware_USER, (char *)user, NULL};
                watched = user;
                seen = -1;
                mwAwareList_addAware(mwAwareList_new(aware, &others), g_list_append(NULL, &id));
            }
            for (time_t end = time(NULL) + STEP_TIMEOUT; seen != status;) {
                int never = 0;
                until(s, &never, 1, 0, NULL);
                if (time(NULL) > end) die("not seen");
            }
        } else if (strcmp(step, "status") == 0 && at + 2 < argc) {
            struct mwUserStatus own = {.status = (guint16)strtol(argv[at + 1], NULL, 0), .desc = argv[at + 2]};
            mwSession_setUserStatus(s, &own);
            at += 2;
        } else if (strcmp(step, "resolve") == 0 && at + 1 < argc) {
            resolved = 0;
            GList *names = g_list_append(NULL, argv[++at]);
            mwServiceResolve_resolve(resolve, names, mwResolveFlag_USERS, on_resolved, NULL, NULL);
            until(s, &resolved, 1, STEP_TIMEOUT, "not resolved");
        } else if (strcmp(step, "idle") == 0 && at + 1 < argc) {
            int never = 0;
            until(s, &never, 1, atoi(argv[++at]), NULL);
        } else {
            fprintf(stderr, "no such step: %s\n", step);
            return 2;
        }
        printf("done %s\n", step);
    }
    mwSession_stop(s, 0);
    printf("logged out\n");
    return 0;
}
