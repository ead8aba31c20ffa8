/* The floor under the floor: one process, one thread, a Unix socket, what comes is sent back. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    static char buffer[65536];
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8)) {
        perror("echo");
        return 1;
    }
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        ssize_t got;
        while (peer >= 0 && (got = read(peer, buffer, sizeof buffer)) > 0)
            for (ssize_t sent = 0, n; sent < got; sent += n)
                if ((n = write(peer, buffer + sent, got - sent)) <= 0) break;
        close(peer);
    }
}
