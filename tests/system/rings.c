/* rings IFACE ENTRIES: give both rings of a network card another size, as ethtool -G does; prints what they are then. */
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct ethtool_ringparam rings = {.cmd = ETHTOOL_GRINGPARAM};
    struct ifreq request = {.ifr_data = (char *)&rings};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    if (argc != 3)
        return 2;
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    if (ioctl(fd, SIOCETHTOOL, &request)) {
        perror("get");
        return 1;
    }
    rings.cmd = ETHTOOL_SRINGPARAM;
    rings.rx_pending = rings.tx_pending = atoi(argv[2]);
    if (ioctl(fd, SIOCETHTOOL, &request)) {
        perror("set");
        return 1;
    }
    rings.cmd = ETHTOOL_GRINGPARAM;
    ioctl(fd, SIOCETHTOOL, &request);
    printf("%u %u of %u\n", rings.rx_pending, rings.tx_pending, rings.rx_max_pending);
    return 0;
}
