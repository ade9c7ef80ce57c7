"""The drop-in for Hyperleap's API: the vendor's paths and JSON, for apps that change their base URL and their key."""
